"""The CPU platform's kernels against the op table's references, called as the runner calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core import ops
from platforms._shared.native.attention import NativeAttention
from platforms._shared.native.ops import KERNELS

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_every_op_of_the_table_has_a_native_kernel() -> None:
    assert set(KERNELS) == set(ops.REFERENCE) - ops.ATTENTION_OPS


def test_no_rows_and_columns_apart() -> None:
    out = torch.full((0, 8), 1.0)
    KERNELS["silu_mul"](torch.empty(0, 16), out)
    with pytest.raises(ValueError, match=r"strides \(1, 4\) do not lie side by side"):
        KERNELS["silu_mul"](torch.randn(16, 4).t(), torch.empty(4, 8))


@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("cache_dtype", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_native_attention_on_a_mixed_batch(
    dtype: torch.dtype, cache_dtype: torch.dtype, window: int | None, block: int
) -> None:
    """A prefill, a decode, a padding row and a chunk; Q, K and V are columns of one matrix."""
    heads, kv_heads, dim = 6, 2, 32
    now, total = [13, 1, 0, 5], [13, 22, 0, 11]
    tokens = sum(now)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    query, key, value = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
    table = torch.randperm(24).add_(1).to(torch.int32).view(4, 6)
    start = torch.tensor([0, *now]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(t - n, t) for n, t in zip(now, total, strict=True)])
    row = torch.repeat_interleave(torch.arange(4), torch.tensor(now))
    slots = (table[row, positions // block] * block + positions % block).to(torch.int32)
    ours, reference = ([torch.zeros(25, kv_heads, block, dim).to(cache_dtype) for _ in range(2)] for _ in range(2))
    backend = NativeAttention()
    past_key, past_value = torch.randn(2, 25 * block, kv_heads * dim).to(dtype)
    for keys, values, where in ((past_key, past_value, torch.arange(25 * block).int()), (key, value, slots)):
        backend.write_kv(keys, values, ours, where)
        ops.kv_write_reference(keys, values, reference, where)

    attrs: dict[str, Any] = {"head_dim": dim, "num_kv_heads": kv_heads, "scale": dim**-0.5, "window": window}
    batch = (table, start, torch.tensor(total, dtype=torch.int32))
    found, expected = torch.empty(tokens, heads * dim, dtype=dtype), torch.empty(tokens, heads * dim, dtype=dtype)
    backend.forward(query, ours, *batch, found, **attrs)
    ops.attention_reference(query, reference, *batch, expected, **attrs)
    near = 1e-5 if dtype is torch.float32 else 2**-7  # bfloat16: weights and results are rounded to it
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
