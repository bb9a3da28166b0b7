"""The native ops of encoders against their references, on every instruction-set tier: within the kit's own bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core import ops
from core.conformance.bounds import bound, deviation
from core.conformance.cases import CASES, Case, Numbers, magnitudes
from core.defaults import torch_dtype
from core.platform import Bucket
from core.types import DType
from platforms._shared import _native
from platforms._shared.native.ops import KERNELS

pytestmark = pytest.mark.usefixtures("tier")


def inputs_of(case: Case, dtype: DType) -> list[Any]:
    given = [each for each in case.inputs if each is not None]
    return [each.data.to(torch_dtype(dtype)) if each.dtype is None else each.data for each in given]


def call(op: str, case: Case, inputs: list[Any], dtype: DType) -> list[Tensor]:
    outputs = [torch.full(shape, torch.nan, dtype=torch_dtype(element or dtype)) for shape, element in case.outputs]
    KERNELS[op](*inputs, *outputs, **case.attrs)
    return outputs


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("op", sorted(ops.ENCODER_OPS))
def test_encoder_ops_are_within_their_bounds(op: str, dtype: DType) -> None:
    for shape in (Bucket(1, 1), Bucket(61, 5), Bucket(200, 2)):
        for case in CASES[op](Numbers(op), shape):
            inputs = inputs_of(case, dtype)
            floats = [each.float() if each.is_floating_point() else each for each in inputs]
            wanted = [torch.empty(shape) for shape, _ in case.outputs]
            ops.REFERENCE[op](*floats, *wanted, **case.attrs)
            sizes = magnitudes(op, floats, case.attrs, wanted)
            for found, want, size in zip(call(op, case, inputs, dtype), wanted, sizes, strict=True):
                assert deviation(found, want, size, dtype) <= bound(op, dtype, case.terms), case.label


@pytest.mark.parametrize("op", sorted(ops.ENCODER_OPS))
def test_threads_change_no_bit(op: str) -> None:
    for case in CASES[op](Numbers(op), Bucket(150, 3)):
        inputs = inputs_of(case, DType.FLOAT32)
        found = []
        for threads in (1, 3):
            _native.set_num_threads(threads)
            found.append(call(op, case, inputs, DType.FLOAT32))
        assert all(map(torch.equal, *found)), case.label


@pytest.mark.parametrize(
    ("starts", "named"), [([-1, 4], "begins below 0"), ([0, 3, 2], "decreases"), ([0, 5], "ends behind")]
)
def test_starts_that_cannot_be_are_refused(starts: list[int], named: str) -> None:
    x, query_start = torch.zeros(4, 8), torch.tensor(starts, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"query_start: {named}"):
        KERNELS["encoder_attention"](x, x, x, query_start, torch.empty(4, 8), head_dim=8, num_kv_heads=1, scale=1.0)


def test_rows_that_are_nobodys_are_not_written() -> None:
    x, query_start = torch.ones(6, 8), torch.tensor([1, 3, 5], dtype=torch.int32)
    out = torch.full((6, 8), torch.nan)
    KERNELS["encoder_attention"](x, x, x, query_start, out, head_dim=8, num_kv_heads=1, scale=1.0)
    assert out.isnan().all(1).tolist() == [True, False, False, False, False, True]
