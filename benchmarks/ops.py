"""Each native op as a share of the machine's limit: `python benchmarks/ops.py`.

SmolLM2-135M's shapes in bfloat16. A call can take no less than its bytes at the read bandwidth of their size, nor less
than its FLOPs at the peak, both measured in the same run; what lies in the cache is read at the cache's speed. Weights
are changed from call to call, so that they come from memory. Median of 5 runs. Prints a Markdown table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from roofline import machine, peak, platform, rate, read_bandwidth
from torch import Tensor

from core.types import DType
from platforms._shared import _native
from platforms._shared.native.operands import operand
from platforms._shared.native.packed import PackedWeight

HIDDEN, INTERMEDIATE, QKV, VOCAB, HEAD_DIM = 576, 1536, 960, 49152, 64
ROWS = (1, 4, 16, 32, 512)
_CYCLE = 192 << 20  # bytes of weights before the first is used again: more than caches hold
_SMALLEST = 1 << 20  # bytes: a bandwidth is measured over no less

Add = Callable[[_native.Program, int], None]


@cache
def bandwidth(size: int) -> float:
    """Bytes a second."""
    return read_bandwidth(max(size, _SMALLEST)).median


def row(name: str, rows: int, calls: list[Add], num_bytes: int, flops: int, resident: bool) -> str:
    """One row of the table; `calls` are run one after the other, and a call's time is the mean of a run."""
    program = _native.Program()
    for number, add in enumerate(calls):
        add(program, number)

    def run() -> float:
        program.run(rows, rows)
        return len(calls)

    seconds = 1 / rate(run).median
    limit = max(num_bytes / bandwidth(num_bytes if resident else _CYCLE), flops / peak_flops())
    return f"| {name} | {rows} | {seconds * 1e6:.1f} | {limit * 1e6:.1f} | {limit / seconds:.0%} |"


@cache
def peak_flops() -> float:
    """FLOP/s of bfloat16 products."""
    return peak("bfloat16").median


def activations(rows: int, columns: int) -> Tensor:
    """Random bfloat16."""
    return torch.randn(rows, columns).to(torch.bfloat16)


def linear(outputs: int, inputs: int) -> None:
    """All row counts with one set of weights."""
    count = -(-_CYCLE // (2 * outputs * inputs))
    memory = platform().memory()
    weights: list[PackedWeight] = [memory.alloc((outputs, inputs), DType.BFLOAT16, "weights") for _ in range(count)]
    for weight in weights:
        memory.upload(weight, torch.full((outputs, inputs), 0.01))
    for rows in ROWS:
        x, out = activations(rows, inputs), activations(rows, outputs)

        def add(program: _native.Program, number: int, x: Tensor = x, out: Tensor = out) -> None:
            program.linear(_native.Rows.tokens, operand(x), weights[number].native, None, operand(out))

        used = min(count, max(2, 512 // rows))
        moved = 2 * (outputs * inputs + rows * (inputs + outputs))
        print(row(f"linear {inputs} to {outputs}", rows, [add] * used, moved, 2 * rows * outputs * inputs, False))
    for weight in weights:
        memory.free(weight)


def small_ops(rows: int) -> None:
    """What runs between the products, on data that the step has just made."""
    x, residual, normed, total = (activations(rows, HIDDEN) for _ in range(4))
    weight, gate_up, gated = (
        activations(1, HIDDEN)[0],
        activations(rows, 2 * INTERMEDIATE),
        activations(rows, INTERMEDIATE),
    )
    angles = torch.randn(rows, HEAD_DIM)
    tokens = _native.Rows.tokens

    def norm(program: _native.Program, _: int) -> None:
        program.add_rms_norm(tokens, *map(operand, (x, residual, weight, normed, total)), eps=1e-5)

    def silu(program: _native.Program, _: int) -> None:
        program.silu_mul(tokens, operand(gate_up), operand(gated))

    def rope(program: _native.Program, _: int) -> None:
        program.rope(tokens, operand(x), operand(angles), operand(total), head_dim=HEAD_DIM)

    repeats = max(10, 2000 // rows)
    print(row("add_rms_norm", rows, [norm] * repeats, 8 * rows * HIDDEN, 0, True))
    print(row("silu_mul", rows, [silu] * repeats, 6 * rows * INTERMEDIATE, 0, True))
    print(row("rope", rows, [rope] * repeats, rows * (4 * HIDDEN + 4 * HEAD_DIM), 0, True))


def main() -> None:
    platform()
    print(f"{machine()}\nread {bandwidth(_CYCLE) / 1e9:.1f} GB/s, products {peak_flops() / 1e9:.0f} GFLOP/s\n")
    print("| op | rows | µs | limit, µs | share |\n|---|---|---|---|---|")
    for outputs, inputs in ((QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)):
        linear(outputs, inputs)
    linear(VOCAB, HIDDEN)
    for rows in ROWS:
        small_ops(rows)


if __name__ == "__main__":
    main()
