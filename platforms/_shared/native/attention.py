"""Attention by the native kernels, over blocks that lie as these multiply them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core.defaults import ReferenceAttention
from core.platform import AttentionQuery, KVLayout, Support
from core.types import DType
from platforms._shared import _native
from platforms._shared.native.operands import SCALE_BYTES, dtype_of

DTYPES = (DType.FLOAT32, DType.BFLOAT16)
KV_DTYPES = (*DTYPES, DType.INT8)
MAX_HEAD_DIM = 256
_PANEL = 16  # keys, or dims of values, that lie side by side


class NativeAttention(ReferenceAttention):
    """Paged attention and KV write of `csrc/cpu`, bit-equal for a row whatever else is in the batch."""

    name = "panels"

    def supports(self, query: AttentionQuery) -> Support:
        """float32 and bfloat16, over these and int8; heads of up to 256; blocks of any size, best a multiple of 16."""
        for dtype, known in ((query.dtype, DTYPES), (query.kv_dtype, KV_DTYPES)):
            if dtype not in known:
                return Support(False, f"the kernels have {', '.join(known)}, not {dtype}")
        if query.head_dim > MAX_HEAD_DIM:
            return Support(False, f"head_dim {query.head_dim} is more than {MAX_HEAD_DIM}")
        return super().supports(query)

    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        """Two planes of [num_kv_heads, block_size, head_dim] elements, head_dim filled up to a multiple of 16.

        How they lie within a head is the kernels' own (`csrc/cpu/kernels/kernels.hpp`). int8 is followed by a float32
        scale a token, so it takes 4 elements more.
        """
        width = -(-query.head_dim // _PANEL) * _PANEL + (SCALE_BYTES if query.kv_dtype is DType.INT8 else 0)
        return KVLayout((query.num_kv_heads, query.block_size, width), query.kv_dtype)

    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        """The kernel of op `kv_write`: key, value [T, kv_heads * D], rows of any stride."""
        keys, values = cache
        _, num_kv_heads, block_size, _ = keys.shape
        _native.kv_write(
            key.data_ptr(),
            value.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slot_mapping.data_ptr(),
            key.shape[0],
            num_kv_heads,
            key.shape[1] // num_kv_heads,
            block_size,
            key.stride(0),
            value.stride(0),
            dtype_of(key),
            dtype_of(keys),
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
            dtype_of(query),
            dtype_of(keys),
        )
