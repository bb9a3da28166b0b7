"""Decode and prefill by the engine, without HTTP: `python benchmarks/engine.py [MODEL] [--dtype T] [--dummy]`.

Each figure is a share of the limit that is measured in the same run: decode reads every weight and its contexts once a
step, or does two FLOPs a weight and row, whichever takes longer; prefill does two FLOPs a weight and token (the head on
the last). Prompts of 128 tokens, 64 output tokens a stream; median of 5 runs with the slowest and the fastest. `Python`
is the time of a decode step outside the native program, `others` the part of the machine that other processes took.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass

from roofline import Elsewhere, machine, peak, read_bandwidth

from core import LLM, SamplingParams
from core.weights.source import default_model
from platforms._shared.native.program import NativeExecutable

RUNS = 5
STREAMS = (1, 4, 16, 32)
PROMPT, OUTPUT, PREFILL = 128, 64, 512


@dataclass
class Clock:
    """Time spent in native programs, and how many were run."""

    seconds: float = 0.0
    steps: int = 0

    def watch(self) -> None:
        """Count every run from here on."""
        run = NativeExecutable.run

        def timed(executable: NativeExecutable, num_tokens: int, num_seqs: int) -> None:
            start = time.perf_counter()
            run(executable, num_tokens, num_seqs)
            self.seconds += time.perf_counter() - start
            self.steps += 1

        NativeExecutable.run = timed  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class Model:
    """Sizes that the limits are made of. `layers` and `head` count weights."""

    layers: int
    head: int
    itemsize: int
    kv_bytes: int  # of one token, all layers

    @classmethod
    def of(cls, llm: LLM) -> Model:
        """From the configuration and the memory plan."""
        model, plan = llm.engine.config.model, llm.engine.memory_plan
        head = model.vocab_size * int(model.hf_config["hidden_size"])
        tables = 1 if model.hf_config.get("tie_word_embeddings") else 2
        layers = plan.weights // model.dtype.itemsize - tables * head
        return cls(layers, head, model.dtype.itemsize, plan.kv_block_bytes // plan.block_size)


def generate(llm: LLM, count: int, length: int, output: int) -> float:
    """Seconds for `count` prompts that share nothing."""
    rng = random.Random(count * length + output)
    vocab = llm.engine.config.model.vocab_size
    prompts = [[rng.randrange(3, vocab) for _ in range(length)] for _ in range(count)]
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, params, progress=False)
    return time.perf_counter() - start


def spread(values: list[float], digits: int = 1) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def decode(llm: LLM, model: Model, streams: int, bandwidth: float, flops: float, clock: Clock) -> str:
    """One row of the table: what comes after the first token, which prefill gives."""
    rates, python, others = [], [], Elsewhere()
    for _ in range(RUNS):
        first = generate(llm, streams, PROMPT, 1)
        clock.seconds, clock.steps = 0.0, 0
        both = generate(llm, streams, PROMPT, OUTPUT)
        rates.append(streams * (OUTPUT - 1) / (both - first))
        python.append((both - clock.seconds) / clock.steps * 1e3)
    context = streams * (PROMPT + OUTPUT // 2)
    weights = (model.layers + model.head) * model.itemsize
    reading = (weights + context * model.kv_bytes) / bandwidth
    computing = 2 * (model.layers + model.head) * streams / flops
    limit = streams / max(reading, computing)
    what = "memory" if reading > computing else "arithmetic"
    share = statistics.median(rates) / limit
    return f"| decode, {streams} | {spread(rates)} | {limit:.0f} ({what}) | {share:.0%} | {spread(python, 2)} | {others.share():.0%} |"


def prefill(llm: LLM, model: Model, length: int, flops: float) -> str:
    """One row of the table: a whole prompt and its first token."""
    others = Elsewhere()
    rates = [length / generate(llm, 1, length, 1) for _ in range(RUNS)]
    limit = length * flops / (2 * (model.layers * length + model.head))
    share = statistics.median(rates) / limit
    return f"| prefill, {length} | {spread(rates)} | {limit:.0f} (arithmetic) | {share:.0%} | | {others.share():.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--dummy", action="store_true", help="random weights of the model's shape")
    given = parser.parse_args()
    options = {"load_format": "dummy"} if given.dummy else {}
    clock = Clock()
    clock.watch()
    with LLM(
        given.model or default_model(), platform="cpu", dtype=given.dtype, max_model_len=1024, max_num_seqs=32,
        enable_prefix_caching=False, progress=False, **options,
    ) as llm:  # fmt: skip
        model = Model.of(llm)
        weights = (model.layers + model.head) * model.itemsize
        read, products = read_bandwidth(weights), peak(given.dtype)
        print(f"{machine()}\n{llm.engine.config.model.name} in {given.dtype}: {weights / 1e6:.0f} MB of weights")
        print(f"read bandwidth at that size {read.show(1e9)} GB/s; products {products.show(1e9)} GFLOP/s\n")
        print("| | tok/s | limit | share | Python, ms a step | others |\n|---|---|---|---|---|---|")
        for streams in STREAMS:
            print(decode(llm, model, streams, read.median, products.median, clock), flush=True)
        for length in (PROMPT, PREFILL):
            print(prefill(llm, model, length, products.median), flush=True)


if __name__ == "__main__":
    main()
