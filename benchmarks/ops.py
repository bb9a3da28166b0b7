"""Each native op as a share of the machine's limit: `python benchmarks/ops.py`.

SmolLM2-135M's shapes in bfloat16, then with quantised weights, each at its own size: its bytes are those it is kept in,
and products are of bytes. A call can take no less than its bytes at the read bandwidth of their size, nor less
than its FLOPs at the peak, both measured in the same run; what lies in the cache is read at the cache's speed. Weights
are changed from call to call, so that they come from memory. Median of 5 runs. Prints a Markdown table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from roofline import machine, peak, platform, rate, read_bandwidth
from torch import Tensor

from core.platform import ONLINE_SCHEMES, MemoryBackend, QuantizedRows
from core.types import DType
from core.weights.gguf.quants import QUANT_TYPES
from platforms._shared import _native
from platforms._shared.native.operands import operand
from platforms._shared.native.ops import native_calls

HIDDEN, INTERMEDIATE, QKV, VOCAB, HEAD_DIM = 576, 1536, 960, 49152, 64
ROWS = (1, 4, 16, 32, 512)
WIDE = (5632, 2048)  # of a model of a thousand million parameters
_CYCLE = 192 << 20  # bytes of weights before the first is used again: more than caches hold
_SMALLEST = 1 << 20  # bytes: a bandwidth is measured over no less

Add = Callable[[_native.Program, int], None]


@cache
def bandwidth(size: int) -> float:
    """Bytes a second."""
    return read_bandwidth(max(size, _SMALLEST)).median


def row(name: str, rows: int, calls: list[Add], num_bytes: int, compute: float, resident: bool) -> str:
    """One row of the table; `calls` are run one after the other, and a call's time is the mean of a run. Its products take
    no less than `compute` seconds."""
    program = _native.Program()
    for number, add in enumerate(calls):
        add(program, number)

    def run() -> float:
        program.run(rows, rows)
        return len(calls)

    seconds = 1 / rate(run).median
    limit = max(num_bytes / bandwidth(num_bytes if resident else _CYCLE), compute)
    return f"| {name} | {rows} | {seconds * 1e6:.1f} | {limit * 1e6:.1f} | {limit / seconds:.0%} |"


@cache
def peak_flops(dtype: str) -> float:
    """FLOP/s of products of bfloat16 or int8."""
    return peak(dtype).median


def activations(rows: int, columns: int) -> Tensor:
    """Random bfloat16."""
    return torch.randn(rows, columns).to(torch.bfloat16)


def linear(outputs: int, inputs: int, scheme: str | None = None) -> None:
    """All row counts with one set of weights."""
    memory = platform().memory()
    make = partial(_weight, memory, outputs, inputs, scheme)
    weights = [make()]
    size = weights[0].nbytes
    weights += [make() for _ in range(_CYCLE // size)]
    for rows in ROWS:
        x, out = activations(rows, inputs), activations(rows, outputs)

        def add(program: _native.Program, number: int, x: Tensor = x, out: Tensor = out) -> None:
            (operands,) = native_calls("linear", [operand(x), weights[number], None, operand(out)])
            program.linear(_native.Rows.tokens, *operands)

        used = min(len(weights), max(2, 512 // rows))
        moved = size + 2 * rows * (inputs + outputs)
        compute = 2 * rows * outputs * inputs / peak_flops("int8" if scheme else "bfloat16")
        name = f"linear {inputs} to {outputs}" + (f", {scheme}" if scheme else "")
        print(row(name, rows, [add] * used, moved, compute, False))
    for weight in weights:
        memory.free(weight)


def _weight(memory: MemoryBackend, outputs: int, inputs: int, scheme: str | None) -> Any:
    """Filled, since memory that was never written lies in the cache."""
    if scheme is None:
        weight = memory.alloc((outputs, inputs), DType.BFLOAT16, "weights")
        memory.upload(weight, torch.full((outputs, inputs), 0.01))
        return weight
    weight = memory.alloc_quantized((outputs, inputs), DType.BFLOAT16, [QuantizedRows(outputs, scheme)])
    if scheme in ONLINE_SCHEMES:
        memory.upload(weight, torch.full((outputs, inputs), 0.01))
    else:
        quant = QUANT_TYPES[scheme.upper()]
        row_bytes = inputs // quant.block_weights * quant.block_bytes
        memory.upload_blocks(weight, torch.full((outputs, row_bytes), 0x11, dtype=torch.uint8), scheme)
    return weight


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
    peaks = " and ".join(f"{peak_flops(dtype) / 1e9:.0f} of {dtype}" for dtype in ("bfloat16", "int8"))
    print(f"{machine()}\nread {bandwidth(_CYCLE) / 1e9:.1f} GB/s, products in GFLOP/s {peaks}\n")
    print("| op | rows | µs | limit, µs | share |\n|---|---|---|---|---|")
    shapes = ((QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE), (VOCAB, HIDDEN))
    for outputs, inputs in shapes:
        linear(outputs, inputs)
    for rows in ROWS:
        small_ops(rows)
    for scheme in ("int8", "q8_0", "q4_0", "q4_1"):
        for outputs, inputs in (*shapes, WIDE):
            linear(outputs, inputs, scheme)
    for scheme in ("q4_k", "q5_k", "q6_k"):  # whose blocks do not divide 576
        linear(*WIDE, scheme)


if __name__ == "__main__":
    main()
