"""Choosing tokens from logits: `python benchmarks/sampling.py`.

The sampler as the runner calls it, on the native kernels and on the core's own in NumPy, for what a request may ask, at 1
and 32 rows of vocabularies of 49,152 and 128,256 tokens. The logits have the spread of a language model's: a few likely
tokens over a broad rest. `floor` is the time to read a row once, at the bandwidth that is measured in the same run over
as many bytes as all rows have. Microseconds a row, median of 9 with the fastest and the slowest. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from roofline import Elsewhere, machine, platform, read_bandwidth

from core.logits import LogitsKernels, ReferenceLogits
from core.sampling.batch import SamplingBatch
from core.sampling.sampler import DefaultSampler
from core.types import SamplingParams

RUNS = 9
ROWS = (1, 32)
VOCABULARIES = (49_152, 128_256)
PROMPT, OUTPUT = 128, 64

ASKED: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature 0.8": SamplingParams(temperature=0.8, seed=1),
    "top_k 40": SamplingParams(top_k=40, seed=1),
    "top_p 0.9": SamplingParams(top_p=0.9, seed=1),
    "min_p 0.05": SamplingParams(min_p=0.05, seed=1),
    "temperature 0.8, top_k 40, top_p 0.9": SamplingParams(temperature=0.8, top_k=40, top_p=0.9, seed=1),
    "three penalties": SamplingParams(
        repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2, temperature=0.0
    ),
    "logprobs 5": SamplingParams(temperature=0.0, logprobs=5),
}


def model_like(rows: int, vocab: int) -> torch.Tensor:
    """Logits: normal with a spread of 2, and a dozen tokens that stand out."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab, generator=generator) * 2
    for row in logits:
        row[torch.randperm(vocab, generator=generator)[:12]] += torch.linspace(4, 14, 12)
    return logits


def batch(params: SamplingParams, rows: int, vocab: int) -> SamplingBatch:
    """Requests in the middle of their answers."""
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, PROMPT + OUTPUT)).astype(np.int32)
    return SamplingBatch(
        params=[params] * rows,
        tokens=tokens,
        num_tokens=np.full(rows, PROMPT + OUTPUT),
        num_prompt=np.full(rows, PROMPT),
        choice=np.zeros(rows, np.int64),
    )


def microseconds(call: Callable[[], object], rows: int, runs: int) -> str:
    """Median (fastest to slowest) a row."""
    call()
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e6 / rows)
    return f"{statistics.median(taken):.1f} ({min(taken):.1f} to {max(taken):.1f})"


def measure(rows: int, vocab: int, runs: int) -> None:
    """One table."""
    logits = model_like(rows, vocab)
    native: LogitsKernels | None = platform().logits_kernels()
    assert native is not None
    floor = logits.nbytes / read_bandwidth(logits.nbytes).median * 1e6 / rows
    print(f"\n{rows} x {vocab}, floor {floor:.1f} µs a row\n")
    print("| | native, µs a row | NumPy, µs a row | others |\n|---|---|---|---|")
    for name, params in ASKED.items():
        others, of = Elsewhere(), batch(params, rows, vocab)
        samplers = [DefaultSampler([2], (), kernels) for kernels in (native, ReferenceLogits())]
        figures = [microseconds(partial(sampler.sample, logits, of), rows, runs) for sampler in samplers]
        print(f"| {name} | {' | '.join(figures)} | {others.share():.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help="(default: %(default)s)")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    platform()  # sets the threads
    print(machine())
    for vocab in VOCABULARIES:
        for rows in ROWS:
            measure(rows, vocab, given.runs)


if __name__ == "__main__":
    main()
