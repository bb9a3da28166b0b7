"""Decode and prefill by the engine, without HTTP: `python benchmarks/engine.py [MODEL] [--quantization Q] [--shape 1.1b]`.

`--shape` takes random weights of a Llama's shape, 1.1 B or 3 B, in place of a model. Each figure is a share of the limit that is measured in the same run: decode reads every weight and its contexts once a
step, in the bytes that they take as they are kept, or does two FLOPs a weight and row, whichever takes longer; prefill does two FLOPs a weight and token (the head on
the last). Prompts of 128 tokens, 64 output tokens a stream; median of 5 runs with the slowest and the fastest. `Python`
is the time of a decode step outside the native program, `others` the part of the machine that other processes took.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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


#: Shapes of Llama: TinyLlama's, and that of Llama 3.2 3B.
SHAPES: dict[str, dict[str, Any]] = {
    "1.1b": {
        "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "intermediate_size": 5632, "vocab_size": 32000, "tie_word_embeddings": False,
    },
    "3b": {
        "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_shape(directory: Path, shape: str) -> str:
    """A directory with the configuration of a shape, which `--load-format dummy` fills."""
    config = {
        **SHAPES[shape], "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
        "eos_token_id": 2,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(directory)


@dataclass(frozen=True)
class Model:
    """Sizes that the limits are made of. `layers` and `head` count weights; `size` are the bytes of both."""

    layers: int
    head: int
    size: int
    kv_bytes: int  # of one token, all layers

    @classmethod
    def of(cls, llm: LLM) -> Model:
        """From the configuration and the memory plan."""
        config, plan = llm.engine.config.model.hf_config, llm.engine.memory_plan
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        attention = 2 * hidden * head_dim * (heads + int(config["num_key_value_heads"]))
        layers = int(config["num_hidden_layers"]) * (attention + 3 * hidden * int(config["intermediate_size"]))
        head = int(config["vocab_size"]) * hidden
        # A table that is not the head as well is read a row at a time.
        read = 1.0 if config.get("tie_word_embeddings") else (layers + head) / (layers + 2 * head)
        return cls(layers, head, round(plan.weights * read), plan.kv_block_bytes // plan.block_size)


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
    reading = (model.size + context * model.kv_bytes) / bandwidth
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


def kept(llm: LLM) -> str:
    """How the weights are kept."""
    model = llm.engine.config.model
    return str(model.dtype) if model.quantization == "none" else f"{model.quantization}, activations {model.dtype}"


def measure(llm: LLM, streams: list[int], clock: Clock) -> None:
    """Print the table."""
    model, dtype = Model.of(llm), llm.engine.config.model.dtype
    read, products = read_bandwidth(model.size), peak(dtype)
    print(f"{machine()}\n{llm.engine.config.model.name} in {kept(llm)}: {model.size / 1e6:.0f} MB read a step")
    print(f"read bandwidth at that size {read.show(1e9)} GB/s; products of {dtype} {products.show(1e9)} GFLOP/s\n")
    print("| | tok/s | limit | share | Python, ms a step | others |\n|---|---|---|---|---|---|")
    for count in streams:
        print(decode(llm, model, count, read.median, products.median, clock), flush=True)
    for length in (PROMPT, PREFILL):
        print(prefill(llm, model, length, products.median), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="default: the demo")
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    parser.add_argument(
        "--quantization",
        default="auto",
        help="as of `core serve`; gguf: a file's blocks as stored (default: %(default)s)",
    )
    parser.add_argument("--dummy", action="store_true", help="random weights of the model's shape")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="(default: %(default)s)")
    given = parser.parse_args()
    options: dict[str, Any] = {"load_format": "dummy"} if given.dummy or given.shape else {}
    clock = Clock()
    clock.watch()
    with TemporaryDirectory() as directory:
        model = given.model or default_model()
        if given.shape:
            options["tokenizer"], options["served_model_name"] = model, f"Llama {given.shape}"
            model = write_shape(Path(directory), given.shape)
        with LLM(
            model, platform="cpu", dtype=given.dtype, quantization=given.quantization, max_model_len=1024,
            max_num_seqs=32, enable_prefix_caching=False, progress=False, **options,
        ) as llm:  # fmt: skip
            measure(llm, given.streams, clock)


if __name__ == "__main__":
    main()
