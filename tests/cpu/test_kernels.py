"""The CPU platform's kernels against the op table's references, called as the runner calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core import ops
from platforms.cpu.attention import NativeAttention
from platforms.cpu.ops import KERNELS

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def both(op: str, *inputs: Any, outputs: list[Tensor], **attrs: Any) -> list[tuple[Tensor, Tensor]]:
    """(ours, the reference's) for each output; both started as NaN."""
    pairs = [(torch.full_like(out, float("nan")), torch.full_like(out, float("nan"))) for out in outputs]
    KERNELS[op](*inputs, *(pair[0] for pair in pairs), **attrs)
    ops.REFERENCE[op](*inputs, *(pair[1] for pair in pairs), **attrs)
    return pairs


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [576, 64, 33])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_norms_are_the_references_to_the_bit(rows: int, width: int, dtype: torch.dtype) -> None:
    packed = torch.randn(rows, 2 * 1152 if width != 33 else 132).to(dtype)
    x = packed[:, : packed.shape[1] // 2]  # columns of a wider matrix, as Q of QKV
    weight = torch.randn(width).to(dtype)
    for ours, reference in both("rms_norm", x, weight, outputs=[torch.empty_like(x)], eps=1e-5):
        assert torch.equal(ours, reference)
    if rows and width == 576:
        x, residual = packed[:, :576], packed[:, 576:1152]
        for ours, reference in both("add_rms_norm", x, residual, weight, outputs=[torch.empty_like(x)] * 2, eps=1e-5):
            assert torch.equal(ours, reference)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rotated", [64, 32])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_rope(rows: int, rotated: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, 1024).to(dtype)[:, 64:640]
    angles = torch.randn(rows, rotated)
    ((ours, reference),) = both("rope", x, angles, outputs=[torch.empty_like(x)], head_dim=64)
    # A product and a sum of two: the fused form may skip one rounding of a term of size ~10.
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=2e-6)


def test_kernels_are_faster_forms_of_ops_that_exist() -> None:
    assert set(KERNELS) <= set(ops.REFERENCE) - ops.ATTENTION_OPS


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("cache_dtype", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_native_attention_on_a_mixed_batch(dtype: torch.dtype, cache_dtype: torch.dtype, window: int | None) -> None:
    """A prefill, a decode, a padding row and a chunk; Q, K and V are columns of one matrix."""
    heads, kv_heads, dim, block = 6, 2, 32, 4
    now, total = [13, 1, 0, 5], [13, 22, 0, 11]
    tokens = sum(now)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    query, key, value = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
    table = torch.randperm(24).add_(1).to(torch.int32).view(4, 6)
    start = torch.tensor([0, *now]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(t - n, t) for n, t in zip(now, total, strict=True)])
    row = torch.repeat_interleave(torch.arange(4), torch.tensor(now))
    slots = (table[row, positions // block] * block + positions % block).to(torch.int32)
    past = [torch.randn(25, kv_heads, block, dim).to(cache_dtype) for _ in range(2)]
    ours, reference = [plane.clone() for plane in past], [plane.clone() for plane in past]
    backend = NativeAttention()
    backend.write_kv(key, value, ours, slots)
    ops.kv_write_reference(key, value, reference, slots)
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))

    attrs: dict[str, Any] = {"head_dim": dim, "num_kv_heads": kv_heads, "scale": dim**-0.5, "window": window}
    inputs = (query, ours, table, start, torch.tensor(total, dtype=torch.int32))
    found, expected = torch.empty(tokens, heads * dim, dtype=dtype), torch.empty(tokens, heads * dim, dtype=dtype)
    backend.forward(*inputs, found, **attrs)
    ops.attention_reference(*inputs, expected, **attrs)
    near = 1e-5 if dtype is torch.float32 else 2**-7  # bfloat16: both round once; a tie may fall either way
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
