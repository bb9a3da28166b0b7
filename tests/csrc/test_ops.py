"""The native programs' ops against `core.ops.REFERENCE`, on every instruction-set tier of this processor.

Error bounds, u being half a unit in the last place of the type (2^-24 of float32, 2^-8 of bfloat16), relative to the
magnitude that the rounding scales with: the sum of the terms' absolute values for a sum, else the result.
Sums of n terms: n * 2^-24 for either side (Higham 2002, equation 3.5). Each rounding to the element type: u.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from core import ops
from platforms._shared import _native
from platforms._shared.native.operands import dtype_of
from platforms._shared.native.ops import KERNELS
from platforms._shared.native.packed import PackedWeight
from tests.support.wide import wide

pytestmark = pytest.mark.usefixtures("tier")

GUARD = 7.25
FLOAT = 2.0**-24
UNIT = {torch.float32: FLOAT, torch.bfloat16: 2.0**-8}
TYPES = list(UNIT)

PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def call(op: str, *inputs: Any, out: list[tuple[int, int, torch.dtype]], **attrs: Any) -> list[Tensor]:
    """The kernel's outputs, each written between guard rows and columns that must stay."""
    guarded = [torch.full((rows + 2, columns + 5), GUARD, dtype=dtype) for rows, columns, dtype in out]
    views = [g[1 : 1 + rows, :columns] for g, (rows, columns, _) in zip(guarded, out, strict=True)]
    KERNELS[op](*inputs, *views, **attrs)
    results = [view.clone() for view in views]
    for whole, view in zip(guarded, views, strict=True):
        view.fill_(GUARD)
        assert (whole == GUARD).all(), f"{op} wrote outside its output"
    return results


def reference(op: str, *inputs: Any, out: list[tuple[int, int, torch.dtype]], **attrs: Any) -> list[Tensor]:
    """The op's meaning in float32."""
    outputs = [torch.empty(rows, columns) for rows, columns, _ in out]
    floats = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    ops.REFERENCE[op](*floats, *outputs, **attrs)
    return outputs


def assert_within(found: Tensor, wanted: Tensor, magnitude: Tensor, roundings: int, float_error: float) -> None:
    allowed = magnitude * (1.01 * roundings * UNIT[found.dtype] + float_error)
    error = (found.float() - wanted).abs()
    assert (error <= allowed).all(), f"off by {(error / magnitude.clamp_min(1e-30)).max():.3g} of the magnitude"


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


# --- linear --------------------------------------------------------------------------------------------------


def check_linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool, wide_out: bool) -> None:
    x, weight = wide(rows, inputs, dtype), torch.randn(outputs, inputs).to(dtype)
    offset = torch.randn(outputs).to(dtype) if bias else None
    out = [(rows, outputs, torch.float32 if wide_out else dtype)]
    (found,) = call("linear", x, PackedWeight.of(weight, dtype_of(weight)), offset, out=out)
    (wanted,) = reference("linear", x.double(), weight.double(), None if offset is None else offset.double(), out=out)
    magnitude = x.float().abs() @ weight.float().abs().t() + (0 if offset is None else offset.float().abs())
    assert_within(found, wanted, magnitude, 1, 2 * (inputs + 2) * FLOAT)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (33, 17), (64, 97), (130, 48), (576, 960), (1536, 40)])
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13, 31])
def test_linear(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    check_linear(rows, inputs, outputs, dtype, bias=False, wide_out=False)


@PROPERTY
@given(
    rows=st.integers(1, 40), inputs=st.integers(1, 200), outputs=st.integers(1, 100), bias=st.booleans(),
    wide_out=st.booleans(), dtype=st.sampled_from(TYPES),
)  # fmt: skip
def test_linear_of_any_shape(
    rows: int, inputs: int, outputs: int, bias: bool, wide_out: bool, dtype: torch.dtype
) -> None:
    check_linear(rows, inputs, outputs, dtype, bias=bias, wide_out=wide_out)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(33, 17), (576, 100)])
def test_a_row_of_linear_is_the_same_bits_alone_in_any_batch_and_on_any_threads(
    inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    rows = 450  # more than two chunks of rows
    x = wide(rows, inputs, dtype)
    weight = PackedWeight.of(torch.randn(outputs, inputs), dtype_of(x))
    (whole,) = call("linear", x, weight, None, out=[(rows, outputs, dtype)])
    for first, last in [(0, 1), (7, 8), (3, 16), (100, 133), (200, 450)]:
        (part,) = call("linear", x[first:last], weight, None, out=[(last - first, outputs, dtype)])
        assert same_bits(part, whole[first:last]), f"rows {first} to {last}"
    for threads in (2, 3):
        _native.set_num_threads(threads)
        (again,) = call("linear", x, weight, None, out=[(rows, outputs, dtype)])
        assert same_bits(again, whole), f"{threads} threads"


def test_not_a_number_spoils_its_row_or_its_column_only() -> None:
    x, weight = torch.randn(20, 33), torch.randn(40, 33)
    x[3, 32], weight[17, 0] = torch.nan, torch.inf
    (found,) = call("linear", x, PackedWeight.of(weight, dtype_of(weight)), None, out=[(20, 40, torch.float32)])
    bad = torch.zeros(20, 40, dtype=torch.bool)
    bad[3], bad[:, 17] = True, True
    assert torch.equal(~found.isfinite(), bad)


# --- packed weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (16, 2), (17, 33), (100, 7)])
def test_what_is_packed_comes_back(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape).to(dtype)
    packed = PackedWeight.of(weight, dtype_of(weight))
    assert torch.equal(packed.read(), weight)
    changed = torch.randn(1, shape[1]).to(dtype)
    packed.write(changed, shape[0] - 1)
    weight[-1] = changed[0]
    assert torch.equal(packed.read(), weight)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 7, 64, 577])
def test_embedding_and_select_rows_copy(width: int, dtype: torch.dtype) -> None:
    table = torch.randn(131, width).to(dtype)
    ids = torch.tensor([130, 0, 77, 77, 16], dtype=torch.int32)
    (found,) = call("embedding", ids, PackedWeight.of(table, dtype_of(table)), out=[(5, width, dtype)])
    assert torch.equal(found, table[ids.long()])
    x = wide(131, width, dtype)
    (found,) = call("select_rows", x, ids, out=[(5, width, dtype)])
    assert torch.equal(found, x[ids.long()])


@pytest.mark.parametrize("token", [-1, 131])
def test_a_token_outside_of_the_table_is_refused(token: int) -> None:
    table = torch.randn(131, 8)
    with pytest.raises(ValueError, match=f"^token_ids: {token} is not one of the 131 rows"):
        call("embedding", torch.tensor([token], dtype=torch.int32), table, out=[(1, 8, torch.float32)])


# --- norms, activation, rotation -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("groups", "width"), [(1, 1), (1, 7), (3, 33), (9, 64), (1, 576), (1, 1000)])
@pytest.mark.parametrize("rows", [1, 37])
def test_norms(rows: int, groups: int, width: int, dtype: torch.dtype) -> None:
    columns = groups * width
    x, residual, weight = wide(rows, columns, dtype), wide(rows, columns, dtype), torch.randn(width).to(dtype)
    error = (width + 16) * FLOAT
    (found,) = call("rms_norm", x, weight, out=[(rows, columns, dtype)], eps=1e-5)
    (wanted,) = reference("rms_norm", x, weight, out=[(rows, columns, dtype)], eps=1e-5)
    assert_within(found, wanted, wanted.abs(), 2, error)

    normed, total = call("add_rms_norm", x, residual, weight, out=[(rows, columns, dtype)] * 2, eps=1e-5)
    assert torch.equal(total, x + residual)
    (wanted,) = reference("rms_norm", total, weight, out=[(rows, columns, dtype)], eps=1e-5)
    assert_within(normed, wanted, wanted.abs(), 2, error)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 7, 64, 1541])
def test_silu_mul(width: int, dtype: torch.dtype) -> None:
    gate_up = wide(9, 2 * width, dtype)
    gate_up[:, :width] *= torch.logspace(-3, 2, 9)[:, None]
    (found,) = call("silu_mul", gate_up, out=[(9, width, dtype)])
    (wanted,) = reference("silu_mul", gate_up, out=[(9, width, dtype)])
    subnormal = 128 * torch.finfo(torch.float32).tiny  # where e^x is, the kernels have zero for x e^x
    assert_within(found, wanted, wanted.abs() + subnormal / FLOAT, 2, 6 * FLOAT)


def test_silu_mul_of_what_is_not_finite_is_the_references() -> None:
    gate_up = torch.tensor(
        [[torch.inf, -torch.inf, torch.nan, 88.5, -88.5, -1000.0, 0.0, 1.0] + [1.0] * 7 + [torch.nan]]
    )
    (found,) = call("silu_mul", gate_up, out=[(1, 8, torch.float32)])
    (wanted,) = reference("silu_mul", gate_up, out=[(1, 8, torch.float32)])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("head_dim", "rotated"), [(64, 64), (64, 32), (6, 2), (80, 80), (20, 14)])
@pytest.mark.parametrize("rows", [1, 29])
def test_rope(rows: int, head_dim: int, rotated: int, dtype: torch.dtype) -> None:
    x, angles = wide(rows, 3 * head_dim, dtype), wide(rows, rotated, torch.float32)
    (found,) = call("rope", x, angles, out=[(rows, 3 * head_dim, dtype)], head_dim=head_dim)
    (wanted,) = reference("rope", x, angles, out=[(rows, 3 * head_dim, dtype)], head_dim=head_dim)
    magnitude = torch.zeros_like(wanted)
    for sign in (-1, 1):  # the sums of both terms' absolute values: of the first half, then of the second
        one_sign = torch.cat([angles[:, : rotated // 2].abs(), sign * angles[:, rotated // 2 :].abs()], 1)
        (terms,) = reference("rope", x.abs(), one_sign, out=[(rows, 3 * head_dim, dtype)], head_dim=head_dim)
        magnitude = torch.maximum(magnitude, terms)
    assert_within(found, wanted, magnitude, 1, 3 * FLOAT)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_rope_angles(scale: float) -> None:
    positions = torch.tensor([0, 1, 2, 1023, 131071], dtype=torch.int32)
    inv_freq = torch.tensor([10000.0 ** (-i / 15) for i in range(15)])
    (found,) = call("rope_angles", positions, inv_freq, out=[(5, 30, torch.float32)], scale=scale)
    (wanted,) = reference("rope_angles", positions, inv_freq, out=[(5, 30, torch.float32)], scale=scale)
    # Both sides take sine and cosine of the same float32 angle; libraries are within 2 ulp.
    torch.testing.assert_close(found, wanted, rtol=0, atol=6 * FLOAT)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", ["rms_norm", "silu_mul", "rope"])
def test_rows_do_not_depend_on_their_neighbours(op: str, dtype: torch.dtype) -> None:
    rows, columns = 300, 200
    x = wide(rows, columns, dtype)
    cases: dict[str, tuple[list[Tensor], int, dict[str, Any]]] = {
        "rms_norm": ([torch.randn(200).to(dtype)], 200, {"eps": 1e-6}),
        "silu_mul": ([], 100, {}),
        "rope": ([torch.randn(rows, 40)], 200, {"head_dim": 50}),
    }
    others, width, attrs = cases[op]

    def run(first: int, last: int) -> Tensor:
        own = [other[first:last] if len(other) == rows else other for other in others]
        return call(op, x[first:last], *own, out=[(last - first, width, dtype)], **attrs)[0]

    whole = run(0, rows)
    assert same_bits(run(117, 118), whole[117:118]) and same_bits(run(40, 290), whole[40:290])
    _native.set_num_threads(2)
    assert same_bits(run(0, rows), whole)


# --- programs ------------------------------------------------------------------------------------------------


def tensor(dtype: str = "float32", columns: int = 8) -> _native.Tensor:
    return _native.Tensor(64, dtype, columns, columns)


WEIGHT = _native.Weight(64, "float32", 4, 8)
CACHE = _native.KVCache(64, 64, "float32", 1, 8, 16)
INT = _native.Tensor(64, "int32", 1, 1)


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "named"),
    [
        ("linear", (tensor(columns=7), WEIGHT, None, tensor(columns=4)), {}, "x"),
        ("linear", (tensor("bfloat16"), WEIGHT, None, tensor(columns=4)), {}, "x"),
        ("linear", (tensor(), WEIGHT, None, tensor(columns=5)), {}, "out"),
        ("linear", (tensor(), WEIGHT, tensor(columns=3), tensor(columns=4)), {}, "bias"),
        ("linear", (tensor(), WEIGHT, None, tensor("bfloat16", 4)), {}, "out"),
        ("embedding", (tensor(), WEIGHT, tensor()), {}, "token_ids"),
        ("embedding", (INT, WEIGHT, tensor(columns=7)), {}, "out"),
        ("select_rows", (tensor(), INT, tensor(columns=7)), {}, "out"),
        ("rms_norm", (tensor(), tensor(columns=3), tensor()), {"eps": 0.0}, "weight"),
        ("rms_norm", (INT, INT, INT), {"eps": 0.0}, "x"),
        ("add_rms_norm", (tensor(), tensor(columns=4), tensor(), tensor(), tensor()), {"eps": 0.0}, "residual"),
        ("silu_mul", (tensor(), tensor()), {}, "out"),
        ("rope_angles", (INT, tensor(columns=3), tensor()), {"scale": 1.0}, "out"),
        ("rope", (tensor(), tensor(columns=4), tensor()), {"head_dim": 3}, "head_dim"),
        ("rope", (tensor(), tensor(columns=6), tensor()), {"head_dim": 4}, "angles"),
        ("kv_write", (tensor(columns=9), tensor(), CACHE, INT), {}, "key"),
        ("kv_write", (tensor(), tensor(), CACHE, tensor()), {}, "slot_mapping"),
    ],
)
def test_operands_that_do_not_fit_are_named(op: str, operands: Any, attrs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        getattr(_native.Program(), op)(_native.Rows.tokens, *operands, **attrs)


def test_a_tensor_is_checked_when_it_is_made() -> None:
    for arguments, named in [
        ((0, "float32", 1, 1), "data"),
        ((2, "float32", 1, 1), "data"),
        ((64, "int8", 1, 1), "dtype"),
    ]:
        with pytest.raises(ValueError, match=f"^{named}: "):
            _native.Tensor(*arguments)
    with pytest.raises(ValueError, match=r"^row: "):
        WEIGHT.pack(3, 2, tensor())
