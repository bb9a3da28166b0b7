"""Paged attention and KV write by Triton's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from core.defaults import ReferenceAttention
from core.platform import AttentionQuery, KVLayout, Support
from core.types import DType
from platforms._shared.triton.kernels import attention as device
from platforms._shared.triton.kernels import kv
from platforms._shared.triton.tiles import MAX_HEAD_DIM, MAX_SPLITS, AttentionTile, Tiles, chosen

FLOATS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
KV_DTYPES = (*FLOATS, DType.INT8)
SCALE_BYTES = 4

#: Rows (token, head, split) that a decode step may leave for `combine_splits`.
_PARTIAL_ROWS = 16384
#: Query rows a sequence up to which a step counts as decode: more fill a prefill's tile.
_DECODE_ROWS = 4


class TritonAttention(ReferenceAttention):
    """One kernel for ragged steps of any mixture; a step of few rows splits its contexts over the device."""

    name = "triton"

    def __init__(self, tiles: Tiles, device: str) -> None:
        self._tiles = tiles
        # Made before a graph can be captured, and before memory is measured for the KV cache.
        self._partial = torch.empty(_PARTIAL_ROWS * MAX_HEAD_DIM, dtype=torch.float32, device=device)
        self._partial_sums = torch.empty(_PARTIAL_ROWS, dtype=torch.float32, device=device)

    def supports(self, query: AttentionQuery) -> Support:
        """Any float type over any KV type; heads of up to 256; up to 16 query heads a KV head."""
        for dtype, known in ((query.dtype, FLOATS), (query.kv_dtype, KV_DTYPES)):
            if dtype not in known:
                return Support(False, f"the kernels have {', '.join(known)}, not {dtype}")
        if query.head_dim > MAX_HEAD_DIM:
            return Support(False, f"head_dim {query.head_dim} is more than {MAX_HEAD_DIM}")
        if query.num_heads // query.num_kv_heads > _smallest_tile(self._tiles):
            return Support(False, f"{query.num_heads} heads on {query.num_kv_heads} KV heads are more than a tile has")
        if query.kv_dtype is DType.INT8 and not self._tiles.int8_kv:
            return Support(False, "the kernels for int8 KV spill registers on this target")
        if query.kv_dtype is DType.INT8 and query.block_size * query.head_dim % SCALE_BYTES:
            return Support(False, "the scales of int8 KV need block_size * head_dim to be a multiple of 4")
        return super().supports(query)

    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        """Two planes of [num_kv_heads, block_size, head_dim] blocks. In int8 each head's part is one run of bytes, its
        elements and then a float32 scale a token."""
        if query.kv_dtype is not DType.INT8:
            return super().kv_layout(query)
        return KVLayout((query.num_kv_heads, query.block_size * (query.head_dim + SCALE_BYTES)), DType.INT8)

    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        """The kernel of op `kv_write`: key, value [T, kv_heads * D], rows of any stride."""
        keys, values = cache
        heads, head_dim = keys.shape[1], key.shape[1] // keys.shape[1]
        kv.kv_write[(key.shape[0],)](
            key, value, keys, values, *_scales(cache), slot_mapping, key.stride(0), value.stride(0), keys.stride(0),
            heads, head_dim, block_size_of(keys, head_dim),
            HEADS=triton.next_power_of_2(heads), DIM=triton.next_power_of_2(head_dim), INT8=keys.dtype is torch.int8,
        )  # fmt: skip

    def write_rotated_kv(
        self, key: Tensor, angles: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor
    ) -> None:
        """`rope` of the keys and `kv_write` in one pass; angles [T, D] rotate whole heads."""
        keys, values = cache
        heads, head_dim = keys.shape[1], key.shape[1] // keys.shape[1]
        kv.rope_kv_write[(key.shape[0],)](
            key, angles, value, keys, values, *_scales(cache), slot_mapping, key.stride(0), angles.stride(0),
            value.stride(0), keys.stride(0), heads, head_dim, block_size_of(keys, head_dim),
            HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(head_dim // 2),
            DIM=triton.next_power_of_2(head_dim), INT8=keys.dtype is torch.int8,
        )  # fmt: skip

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
        num_tokens, num_seqs = query.shape[0], seq_lens.shape[0]
        heads = query.shape[1] // head_dim
        group = heads // num_kv_heads
        few = num_tokens <= _DECODE_ROWS * num_seqs
        tile = attention_tile(self._tiles, head_dim, query.dtype is torch.float32, few=few)
        num_tiles = num_tokens // (tile.block_m // group) + num_seqs
        block_size = block_size_of(keys, head_dim)
        reach = block_table.shape[1] * block_size
        splits = self._splits(num_tiles * num_kv_heads, num_tokens * heads, reach // tile.block_n) if few else 1
        widened = keys.dtype is not torch.int8 and keys.dtype is not query.dtype
        dim = max(16, triton.next_power_of_2(head_dim))  # the least that a matrix unit takes
        device.paged_attention[(num_tiles, num_kv_heads, splits)](
            query, keys, values, *_scales(cache), block_table, query_start, seq_lens, out, self._partial,
            self._partial_sums, query.stride(0), out.stride(0), block_table.stride(0), keys.stride(0), num_seqs,
            num_kv_heads, head_dim, block_size, scale, window or 0,
            GROUP=group, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, DIM=dim, SPLITS=splits,
            WINDOW=window is not None, INT8=keys.dtype is torch.int8, WIDEN=widened,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        if splits > 1:
            device.combine_splits[(num_tokens, heads)](
                self._partial, self._partial_sums, query_start, num_seqs, out, out.stride(0), heads, head_dim,
                SPLITS=splits, DIM=dim,
            )  # fmt: skip

    def _splits(self, programs: int, rows: int, most: int) -> int:
        """Into how many parts a context is split: a power of two, until the device has enough programs."""
        splits = 1
        while splits < MAX_SPLITS and 2 * splits * rows <= _PARTIAL_ROWS and 2 * splits <= most:
            if splits * programs >= self._tiles.programs:
                break
            splits *= 2
        return splits


def attention_tile(tiles: Tiles, head_dim: int, float32: bool, *, few: bool) -> AttentionTile:
    """The tile of a step with few rows a sequence, or with many."""
    if float32:
        return chosen(tiles.decode_float32 if few else tiles.prefill_float32, head_dim)
    return chosen(tiles.decode if few else tiles.prefill, head_dim)


def block_size_of(plane: Tensor, head_dim: int) -> int:
    """Tokens of a block of `plane`."""
    return int(plane.shape[2]) // (head_dim + SCALE_BYTES) if plane.dtype is torch.int8 else int(plane.shape[2])


def _scales(cache: Sequence[Tensor]) -> list[Tensor]:
    """The planes read as float32, in which int8 blocks have their scales; others have none, and it is not read."""
    return [plane.view(torch.float32) if plane.dtype is torch.int8 else plane for plane in cache]


def _smallest_tile(tiles: Tiles) -> int:
    tables = (tiles.decode, tiles.prefill, tiles.decode_float32, tiles.prefill_float32)
    return min(tile.block_m for table in tables for tile in table.values())
