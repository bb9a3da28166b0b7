"""Native paged attention against torch's scaled_dot_product_attention, on SmolLM2's shapes (9 heads, 3 KV heads of 64).

Torch gets contiguous keys and values, so it is spared the block table. For decode, GB/s counts the keys and values
read once; for prefill, GFLOP/s counts the two products over the causal half. Medians of 5 runs, each long enough to
time (at least 0.1 s). Prints a Markdown table.

    python benchmarks/attention.py [THREADS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from platforms._shared import _native

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16
RUNS = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """`num_seqs` sequences that each compute their last `num_queries` of `length` positions."""

    num_seqs: int
    num_queries: int
    length: int


SHAPES = (
    Shape(1, 1, 512),
    Shape(1, 1, 4096),
    Shape(32, 1, 512),
    Shape(8, 1, 4096),
    Shape(1, 512, 512),
    Shape(1, 512, 4096),
)


def seconds(run: Callable[[], object]) -> float:
    """Median time of one call over RUNS runs."""
    run()
    start = time.perf_counter()
    run()
    repeats = max(1, int(0.1 / (time.perf_counter() - start)))
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times)


def native(shape: Shape, dtype: str) -> Callable[[], None]:
    """One call of the paged kernel on random data."""
    blocks = -(-shape.length // BLOCK_SIZE)
    key, value = torch.randn(2, shape.num_seqs * blocks + 1, KV_HEADS, BLOCK_SIZE, HEAD_DIM).to(DTYPES[dtype])
    tables = (torch.randperm(shape.num_seqs * blocks) + 1).reshape(shape.num_seqs, blocks).to(torch.int32)
    query = torch.randn(shape.num_seqs * shape.num_queries, HEADS * HEAD_DIM).to(DTYPES[dtype])
    out = torch.empty_like(query)
    query_start = (torch.arange(shape.num_seqs + 1) * shape.num_queries).to(torch.int32)
    seq_lens = torch.full((shape.num_seqs,), shape.length, dtype=torch.int32)

    def run() -> None:
        _native.paged_attention(
            query.data_ptr(), query.stride(0), key.data_ptr(), value.data_ptr(), tables.data_ptr(), tables.stride(0),
            query_start.data_ptr(), seq_lens.data_ptr(), out.data_ptr(), out.stride(0), shape.num_seqs, HEADS,
            KV_HEADS, HEAD_DIM, BLOCK_SIZE, HEAD_DIM**-0.5, 0, dtype, dtype,
        )  # fmt: skip

    return run


def sdpa(shape: Shape, dtype: str) -> Callable[[], object]:
    """The same attention by torch, with a causal mask where there is more than one query."""
    query = torch.randn(shape.num_seqs, HEADS, shape.num_queries, HEAD_DIM).to(DTYPES[dtype])
    key, value = torch.randn(2, shape.num_seqs, KV_HEADS, shape.length, HEAD_DIM).to(DTYPES[dtype])
    computed = shape.length - shape.num_queries
    mask = torch.ones(shape.num_queries, shape.length, dtype=torch.bool).tril(computed)

    def run() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask if shape.num_queries > 1 else None, enable_gqa=True
        )

    return run


def rate(shape: Shape, dtype: str, elapsed: float) -> str:
    """GB/s of keys and values for decode, GFLOP/s for prefill."""
    if shape.num_queries == 1:
        num_bytes = 2 * shape.num_seqs * shape.length * KV_HEADS * HEAD_DIM * DTYPES[dtype].itemsize
        return f"{num_bytes / elapsed / 1e9:.1f} GB/s"
    seen = shape.num_queries * (2 * shape.length - shape.num_queries + 1) / 2
    return f"{4 * shape.num_seqs * HEADS * HEAD_DIM * seen / elapsed / 1e9:.0f} GFLOP/s"


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    torch.set_num_threads(threads)
    _native.set_num_threads(threads)
    print(f"{threads} threads, {_native.isa()}, torch {torch.__version__}\n")
    print(
        "| sequences x queries, context | dtype | native | | torch | | torch / native |\n|---|---|---|---|---|---|---|"
    )
    with torch.inference_mode():
        for shape in SHAPES:
            for dtype in DTYPES:
                ours, theirs = seconds(native(shape, dtype)), seconds(sdpa(shape, dtype))
                print(
                    f"| {shape.num_seqs} x {shape.num_queries}, {shape.length} | {dtype} "
                    f"| {ours * 1e6:.0f} µs | {rate(shape, dtype, ours)} "
                    f"| {theirs * 1e6:.0f} µs | {rate(shape, dtype, theirs)} | {theirs / ours:.2f} |"
                )


if __name__ == "__main__":
    main()
