"""Attention by the native kernels: the reference's layout, addresses in place of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core.defaults import ReferenceAttention
from core.platform import AttentionQuery, Support
from core.types import DType
from platforms._shared import _native

DTYPES = (DType.FLOAT32, DType.BFLOAT16)
MAX_HEAD_DIM = 256


class NativeAttention(ReferenceAttention):
    """Paged attention and KV write of `csrc/cpu`, bit-equal for a row whatever else is in the batch."""

    name = "native"

    def supports(self, query: AttentionQuery) -> Support:
        """float32 and bfloat16, heads of up to 256."""
        for dtype in (query.dtype, query.kv_dtype):
            if dtype not in DTYPES:
                return Support(False, f"the kernels have {' and '.join(DTYPES)}, not {dtype}")
        if query.head_dim > MAX_HEAD_DIM:
            return Support(False, f"head_dim {query.head_dim} is more than {MAX_HEAD_DIM}")
        return super().supports(query)

    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        """The kernel of op `kv_write`: key, value [T, kv_heads * D], rows of any stride."""
        keys, values = cache
        _, num_kv_heads, block_size, head_dim = keys.shape
        _native.kv_write(
            key.data_ptr(),
            value.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slot_mapping.data_ptr(),
            key.shape[0],
            num_kv_heads,
            head_dim,
            block_size,
            key.stride(0),
            value.stride(0),
            _name(key),
            _name(keys),
        )

    def forward(
        self,
        query: Tensor,
        cache: Sequence[Tensor],
        block_table: Tensor,
        query_start: Tensor,
        seq_lens: Tensor,
        out: Tensor,
        *,
        head_dim: int,
        num_kv_heads: int,
        scale: float,
        window: int | None,
    ) -> None:
        """The kernel of op `attention`: query, out [T, heads * D], rows of any stride."""
        keys, values = cache
        _native.paged_attention(
            query.data_ptr(),
            query.stride(0),
            keys.data_ptr(),
            values.data_ptr(),
            block_table.data_ptr(),
            block_table.stride(0),
            query_start.data_ptr(),
            seq_lens.data_ptr(),
            out.data_ptr(),
            out.stride(0),
            seq_lens.shape[0],
            query.shape[1] // head_dim,
            num_kv_heads,
            head_dim,
            keys.shape[2],
            scale,
            window or 0,
            _name(query),
            _name(keys),
        )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
