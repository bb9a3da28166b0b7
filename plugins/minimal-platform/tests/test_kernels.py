"""Each kernel against the reference of its op: any shape, views with strides, and nothing written beyond the output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.ops import REFERENCE
from core_minimal.kernels import KERNELS

ROWS = st.sampled_from([0, 1, 2, 7, 33])
HEADS = st.integers(1, 4)
HEAD_DIM = 16
#: What lies around an output, and must lie there still.
GUARD = 7.5


def view(rows: int, columns: int) -> Tensor:
    """Random numbers in the middle columns of a wider tensor, as a part of a stacked projection lies."""
    return torch.randn(rows, columns + 8)[:, 3 : columns + 3]


def assert_equals_reference(op: str, inputs: list[Any], *widths: int, **attrs: Any) -> None:
    rows = inputs[0].shape[0]
    wide = [torch.full((rows, width + 8), GUARD) for width in widths]
    got = [tensor[:, 3 : width + 3] for tensor, width in zip(wide, widths, strict=True)]
    expected = [torch.zeros(rows, width) for width in widths]
    KERNELS[op](*inputs, *got, **attrs)
    REFERENCE[op](*inputs, *expected, **attrs)
    for tensor, width, one, other in zip(wide, widths, got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert bool((tensor[:, :3] == GUARD).all()) and bool((tensor[:, width + 3 :] == GUARD).all())


@settings(deadline=None)
@given(rows=ROWS, inputs=st.integers(1, 65), outputs=st.integers(1, 65), bias=st.booleans())
def test_linear(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    weight = torch.randn(outputs, inputs)
    assert_equals_reference("linear", [view(rows, inputs), weight, torch.randn(outputs) if bias else None], outputs)


@settings(deadline=None)
@given(rows=ROWS, heads=HEADS)
def test_rms_norm_of_each_head(rows: int, heads: int) -> None:
    width = heads * HEAD_DIM
    assert_equals_reference("rms_norm", [view(rows, width), torch.randn(HEAD_DIM)], width, eps=1e-5)


@settings(deadline=None)
@given(rows=ROWS, width=st.integers(1, 65))
def test_add_rms_norm(rows: int, width: int) -> None:
    inputs = [view(rows, width), view(rows, width), torch.randn(width)]
    assert_equals_reference("add_rms_norm", inputs, width, width, eps=1e-5)


@settings(deadline=None)
@given(rows=ROWS, width=st.integers(1, 65))
def test_silu_mul(rows: int, width: int) -> None:
    assert_equals_reference("silu_mul", [10 * view(rows, 2 * width)], width)


@settings(deadline=None)
@given(rows=ROWS, heads=HEADS, rotated=st.sampled_from([4, HEAD_DIM]))
def test_rope(rows: int, heads: int, rotated: int) -> None:
    width = heads * HEAD_DIM
    inputs = [view(rows, width), torch.randn(rows, rotated)]
    assert_equals_reference("rope", inputs, width, head_dim=HEAD_DIM)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
def test_what_overflows_or_is_no_number_comes_out_as_the_reference_has_it(number: float) -> None:
    x = torch.tensor([[number, 1.0, 1.0, 1.0]])
    out, expected = torch.zeros(1, 2), torch.zeros(1, 2)
    KERNELS["silu_mul"](x, out)
    REFERENCE["silu_mul"](x, expected)
    torch.testing.assert_close(out, expected, equal_nan=True)
