"""Quantised weights and their products, in every scheme, on every instruction-set tier of this processor.

What a weight reads as is held against its meaning in `core.quantization`, and its products against what it reads as, in
float64. Their bound: half a step of the activations, of eight bits (|x|max / 254 of 32 inputs) for int8 and int4 and of
sixteen (|x|max / 65278 of a group) for a file's blocks, times the sum of the weights' magnitudes there; the float sums of n groups, in `FLOAT` of the terms' magnitudes; one rounding to
the output's type.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.platform import MemoryInfo, QuantizedRows
from core.quantization import BLOCK_SCHEMES, SCHEMES, block_inputs, dequantized, quantized
from core.types import DType
from core.weights.gguf.quants import QUANT_TYPES
from platforms._shared import _native
from platforms._shared.native.memory import CpuMemory
from platforms._shared.native.operands import dtype_of
from platforms._shared.native.ops import KERNELS
from platforms._shared.native.quantized import StackedWeight
from tests.support.wide import wide

pytestmark = pytest.mark.usefixtures("tier")

GUARD = 7.25
FLOAT = 2.0**-24
HALF = 2.0**-11  # float16's half unit
UNIT = {torch.float32: FLOAT, torch.bfloat16: 2.0**-8}
TYPES = list(UNIT)

#: Bytes of a block at which its float16 scales lie: any other may hold any bits.
SCALES_AT = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q4_k": (0, 2), "q5_k": (0, 2),
    "q6_k": (208,),
}  # fmt: skip
#: Schemes whose scales are float16 in the file, and so lose nothing.
EXACT = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")

PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def memory() -> CpuMemory:
    return CpuMemory(lambda: MemoryInfo(1 << 40, 1 << 40))


def random_blocks(scheme: str, outputs: int, inputs: int) -> Tensor:
    """Any quants; scales of either sign and the size of a model's."""
    quant = QUANT_TYPES[scheme.upper()]
    blocks = torch.randint(0, 256, (outputs, inputs // quant.block_weights, quant.block_bytes), dtype=torch.uint8)
    for at in SCALES_AT[scheme]:
        blocks[:, :, at : at + 2] = (torch.randn(*blocks.shape[:2], 1) / 256).half().view(torch.uint8)
    return blocks.flatten(1)


def fill(at: CpuMemory, handle: StackedWeight, scheme: str | None, rows: int, row: int = 0) -> Tensor:
    """Random contents of a part; gives what they mean."""
    inputs = handle.shape[1]
    if scheme in BLOCK_SCHEMES:
        blocks = random_blocks(scheme, rows, inputs)
        at.upload_blocks(handle, blocks, scheme, row=row)
        return dequantized(blocks, scheme)
    values = torch.randn(rows, inputs) / 8
    at.upload(handle, values, row=row)
    return values if scheme is None else quantized(values, scheme)


def weight(scheme: str, outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> tuple[StackedWeight, Tensor]:
    """A filled weight, and what was put there means."""
    at = memory()
    handle = at.alloc_quantized((outputs, inputs), DType(str(dtype)[6:]), [QuantizedRows(outputs, scheme)])
    return handle, fill(at, handle, scheme, outputs)


def linear(
    x: Tensor, handle: StackedWeight, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The product, written between guard rows and columns that must stay."""
    rows, outputs = len(x), handle.shape[0]
    whole = torch.full((rows + 2, outputs + 5), GUARD, dtype=out_dtype or x.dtype)
    out = whole[1 : 1 + rows, :outputs]
    KERNELS["linear"](x, handle, bias, out)
    result = out.clone()
    out.fill_(GUARD)
    assert (whole == GUARD).all(), "written outside the output"
    return result


def activation_loss(x: Tensor, values: Tensor, scheme: str) -> Tensor:
    """Half a step of each activation times its weight's magnitude: [rows, outputs]."""
    return 1.001 * activation_steps(x, scheme) / 2 @ values.double().abs().t()


def activation_steps(x: Tensor, scheme: str) -> Tensor:
    group, largest = 16 if scheme == "q6_k" else 32, 32639 if scheme in BLOCK_SCHEMES else 127
    padded = torch.nn.functional.pad(x.double().abs(), (0, -x.shape[1] % group))
    return padded.view(len(x), -1, group).amax(2).repeat_interleave(group, 1)[:, : x.shape[1]] / largest


def check_linear(
    scheme: str, rows: int, inputs: int, outputs: int, dtype: torch.dtype, bias: bool = False, wide_out: bool = False
) -> None:
    handle, _ = weight(scheme, outputs, inputs, dtype)
    values, x = handle.read().double(), wide(rows, inputs, dtype)
    offset = torch.randn(outputs).to(dtype) if bias else None
    found = linear(x, handle, offset, torch.float32 if wide_out else dtype)
    wanted = x.double() @ values.t() + (0 if offset is None else offset.double())
    # Of quants without their zero or offset, which a sum has until these are taken off: at most 8 times a value here.
    terms = 8 * (x.double().abs() @ values.abs().t()) + x.double().abs().sum(1, keepdim=True) * values.abs().max()
    allowed = activation_loss(x, values, scheme)
    allowed += (inputs + 8) * FLOAT * (terms + wanted.abs()) + 1.01 * UNIT[found.dtype] * wanted.abs()
    error = (found.double() - wanted).abs()
    assert (error <= 1.01 * allowed + 1e-30).all(), f"{(error / allowed).max():.3g} times as far off as allowed"


# --- what a weight reads as ----------------------------------------------------------------------------------


def test_the_schemes_are_those_of_the_contract() -> None:
    assert set(_native.schemes()) == set(SCHEMES)


@pytest.mark.parametrize("scheme", BLOCK_SCHEMES)
@pytest.mark.parametrize(("outputs", "blocks"), [(1, 1), (16, 2), (35, 3)])
def test_blocks_read_as_the_core_dequantises_them(scheme: str, outputs: int, blocks: int) -> None:
    handle, wanted = weight(scheme, outputs, blocks * block_inputs(scheme))
    found = handle.read()
    if scheme in EXACT:
        assert torch.equal(found, wanted)
    else:  # a scale, and an offset, each rounded to float16; subnormal ones in steps of 2^-24
        largest = wanted.abs().view(outputs, -1, 16).amax(2).repeat_interleave(16, 1)
        groups = wanted.view(outputs, -1, 32)
        span = (groups.amax(2) - groups.amin(2) + groups.abs().amax(2)).repeat_interleave(32, 1)
        assert ((found - wanted).abs() <= 2 * HALF * (largest + span) + 65 * 2.0**-25).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("scheme", "inputs"), [("int8", 1), ("int8", 29), ("int8", 130), ("int4", 32), ("int4", 96)])
def test_floats_read_as_the_scheme_means_them(scheme: str, inputs: int, dtype: torch.dtype) -> None:
    at, values = memory(), torch.randn(19, inputs).to(dtype)
    values[3] = 0
    handle = at.alloc_quantized((19, inputs), DType.FLOAT32, [QuantizedRows(19, scheme)])
    at.upload(handle, values)
    wanted, group = quantized(values, scheme), inputs if scheme == "int8" else 32
    step = wanted.view(19, -1, group).amax(2) - wanted.view(19, -1, group).amin(2)
    step = (step / (127 if scheme == "int8" else 15)).repeat_interleave(group, 1)
    error = (handle.read() - wanted).abs()
    # Where a value lies halfway between two quants, either may be taken.
    assert (error <= 1.01 * step + 1e-7).all() and (error <= 1e-6 * wanted.abs().max()).float().mean() > 0.98


def test_what_is_not_finite_spoils_its_output_only() -> None:
    for scheme in ("int8", "int4"):
        at, values = memory(), torch.randn(20, 64)
        values[3, 5], values[17, 60] = torch.nan, torch.inf
        handle = at.alloc_quantized((20, 64), DType.FLOAT32, [QuantizedRows(20, scheme)])
        at.upload(handle, values)
        x = torch.randn(5, 64)
        x[2, 63] = torch.nan
        bad = torch.zeros(5, 20, dtype=torch.bool)
        bad[2], bad[:, 3], bad[:, 17] = True, True, True
        assert torch.equal(~linear(x, handle).isfinite(), bad), scheme


# --- products ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("rows", "blocks", "outputs"), [(1, 1, 1), (1, 3, 35), (12, 2, 33), (13, 5, 64), (40, 2, 97)])
def test_linear(rows: int, blocks: int, outputs: int, scheme: str, dtype: torch.dtype) -> None:
    inputs = 29 * blocks if scheme == "int8" else block_inputs(scheme) * blocks
    check_linear(scheme, rows, inputs, outputs, dtype)


@PROPERTY
@given(
    scheme=st.sampled_from(SCHEMES), rows=st.integers(1, 40), blocks=st.integers(1, 7), outputs=st.integers(1, 100),
    odd=st.integers(0, 40), bias=st.booleans(), wide_out=st.booleans(), dtype=st.sampled_from(TYPES),
)  # fmt: skip
def test_linear_of_any_shape(
    scheme: str, rows: int, blocks: int, outputs: int, odd: int, bias: bool, wide_out: bool, dtype: torch.dtype
) -> None:
    inputs = block_inputs(scheme) * blocks + (odd if scheme == "int8" else 0)
    check_linear(scheme, rows, inputs, outputs, dtype, bias, wide_out)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_is_the_same_bits_alone_in_any_batch_and_on_any_threads(scheme: str, dtype: torch.dtype) -> None:
    rows, inputs = 450, 256  # more than two chunks of rows
    handle, _ = weight(scheme, 57, inputs, dtype)
    x = wide(rows, inputs, dtype)
    x *= torch.logspace(-3, 3, rows)[:, None].to(dtype)
    whole = linear(x, handle)
    for first, last in [(0, 1), (7, 8), (3, 16), (100, 133), (191, 194), (200, 450)]:
        assert torch.equal(linear(x[first:last], handle), whole[first:last]), f"rows {first} to {last}"
    for threads in (2, 3):
        _native.set_num_threads(threads)
        assert torch.equal(linear(x, handle), whole), f"{threads} threads"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_the_error_is_that_of_rounding_activations_and_has_no_direction(scheme: str) -> None:
    """A step s, rounded to nearest, errs by s^2 / 12 in the mean square: sums of many are held to that within a tenth."""
    inputs, rows = 768, 64
    handle, _ = weight(scheme, 128, inputs)
    values, x = handle.read().double(), torch.randn(rows, inputs)
    expected = (activation_steps(x, scheme) ** 2 / 12 @ (values**2).t()).sqrt()
    error = (linear(x, handle).double() - x.double() @ values.t()) / expected
    assert 0.9 < error.pow(2).mean().sqrt() < 1.1 and error.mean().abs() < 0.1


@pytest.mark.parametrize("scheme", BLOCK_SCHEMES)
def test_blocks_are_multiplied_as_well_as_floats_are(scheme: str) -> None:
    """Activations of 16 bits err by less than a rounding to bfloat16 does, by a factor of 50 in the mean."""
    handle, _ = weight(scheme, 128, 768)
    values, x = handle.read().double(), torch.randn(64, 768)
    wanted = x.double() @ values.t()
    error = (linear(x, handle).double() - wanted).pow(2).mean().sqrt()
    assert 50 * error < (x.bfloat16().double() @ values.t() - wanted).pow(2).mean().sqrt()


def test_extreme_quants_do_not_saturate() -> None:
    """255 times 127, in pairs, is more than int16 holds; so does the largest sum of a group fit into int32."""
    blocks = torch.full((16, 34), 127, dtype=torch.uint8)
    blocks[8:, 2:] = 128  # -128
    blocks[:, :2] = torch.tensor([1.0]).half().view(torch.uint8)
    at = memory()
    handle = at.alloc_quantized((16, 32), DType.FLOAT32, [QuantizedRows(16, "q8_0")])
    at.upload_blocks(handle, blocks, "q8_0")
    x = torch.stack([torch.full((32,), 127.0), torch.full((32,), -127.0)])
    assert torch.equal(linear(x, handle), x @ handle.read().t())


def test_rows_of_zeros_and_of_tiny_numbers_are_zero() -> None:
    for scheme in SCHEMES:
        handle, _ = weight(scheme, 20, 256)
        x = torch.zeros(2, 256)
        x[1] = 1e-40
        assert torch.equal(linear(x, handle), torch.zeros(2, 20)), scheme


# --- parts and places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_parts_of_a_stacked_weight_are_as_they_are_alone(dtype: torch.dtype) -> None:
    schemes: list[tuple[str | None, int]] = [("q4_k", 19), (None, 5), ("q6_k", 32), ("int8", 7)]
    at, rows = memory(), sum(count for _, count in schemes)
    parts = [QuantizedRows(count, scheme) for scheme, count in schemes]
    handle = at.alloc_quantized((rows, 256), dtype_of(torch.empty(0, dtype=dtype)), parts)
    assert at.in_use() == {"weights": at.quantized_size((rows, 256), dtype_of(torch.empty(0, dtype=dtype)), parts)}
    row = 0
    for scheme, count in schemes:
        fill(at, handle, scheme, count, row)
        row += count
    x, bias = wide(14, 256, dtype), torch.randn(rows).to(dtype)
    found = linear(x, handle, bias)
    for part in handle.parts:
        own = slice(part.row, part.row + part.rows)
        assert torch.equal(linear(x, StackedWeight([part.weight]), bias[own].clone()), found[:, own])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("schemes", [("q4_1",), ("int8",), ("q6_k", None, "q4_0")])
def test_embedding_gives_the_rows_that_are_read(schemes: tuple[str | None, ...], dtype: torch.dtype) -> None:
    at, rows = memory(), 21 * len(schemes)
    parts = [QuantizedRows(21, scheme) for scheme in schemes]
    handle = at.alloc_quantized((rows, 256), dtype_of(torch.empty(0, dtype=dtype)), parts)
    for place, scheme in enumerate(schemes):
        fill(at, handle, scheme, 21, 21 * place)
    ids = torch.tensor([0, 20, rows - 1, 3, 3], dtype=torch.int32)
    out = torch.empty(5, 256, dtype=dtype)
    KERNELS["embedding"](ids, handle, out)
    assert torch.equal(out, at.download(handle)[ids.long()].to(dtype))
    with pytest.raises((ValueError, IndexError)):
        KERNELS["embedding"](torch.tensor([rows], dtype=torch.int32), handle, out[:1])


def test_rows_come_in_any_pieces() -> None:
    at = memory()
    for scheme in ("q5_k", "int4"):
        handle, whole = (at.alloc_quantized((40, 256), DType.FLOAT32, [QuantizedRows(40, scheme)]) for _ in range(2))
        blocks = random_blocks("q5_k", 40, 256)
        values = torch.randn(40, 256)
        for own, target in ((handle, [slice(17, 40), slice(0, 17)]), (whole, [slice(0, 40)])):
            for rows in target:
                if scheme == "int4":
                    at.upload(own, values[rows], row=rows.start)
                else:
                    at.upload_blocks(own, blocks[rows], scheme, row=rows.start)
        assert torch.equal(handle.read(), whole.read())


def test_what_does_not_fit_is_refused_and_leaves_the_weight() -> None:
    at = memory()
    parts = [QuantizedRows(16, "q4_0"), QuantizedRows(4, "int8")]
    handle = at.alloc_quantized((20, 64), DType.FLOAT32, parts)
    blocks = random_blocks("q4_0", 16, 64)
    attempts: list[tuple[Any, ...]] = [
        (at.upload_blocks, blocks, "q4_1", 0),  # another scheme
        (at.upload_blocks, blocks, "q4_0", 1),  # beyond the part
        (at.upload_blocks, blocks[:4], "q4_0", 16),  # a part that takes floats
        (at.upload_blocks, blocks[:, :18], "q4_0", 0),  # too narrow
    ]
    for put, data, scheme, row in attempts:
        with pytest.raises(ValueError):
            put(handle, data, scheme, row=row)
    for data, row in ((torch.zeros(4, 64), 0), (torch.zeros(4, 63), 16), (torch.zeros(5, 64), 16)):
        with pytest.raises(ValueError):
            at.upload(handle, data, row=row)
    assert torch.equal(handle.read(), torch.zeros(20, 64))
