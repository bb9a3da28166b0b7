"""Attention over the paged KV cache, in torch.

OpenVINO's public operations cannot write into a cache that they also read, so these two run between its own as
operations of ours (`core_openvino.host_op`). What a step reads is worked out once, not once a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.defaults import ReferenceAttention
from core.platform import AttentionQuery, KVLayout

#: Query rows of one sequence that are taken together: the mask of more would be large, and much of it hidden.
_ROWS = 256
#: KV positions that sequences of one row each are gathered into together, padding included.
_POSITIONS = 8192


@dataclass(frozen=True)
class Piece:
    """`batch` sequences with the same number of query rows, which are attended to by one call.

    `rows` are those of the step, sequence by sequence; `slots` [batch * length] int64 are the KV positions, padded to
    one length; `mask` [batch, 1, rows, length] is added to the scores, None where every row sees everything.
    """

    batch: int
    rows: slice | Tensor
    slots: Tensor
    mask: Tensor | None


class PagedAttention(ReferenceAttention):
    """Gathers the blocks of a sequence, then torch's scaled dot product attention.

    Blocks are [block_size, num_kv_heads, head_dim], so that a token's keys are one run of memory.
    """

    name = "openvino"

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], list[Piece]] | None = None

    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        """Two planes of [block_size, num_kv_heads, head_dim] blocks."""
        return KVLayout((query.block_size, query.num_kv_heads, query.head_dim), query.kv_dtype)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within one step the same block table means the same pieces: the layers of a KV group share them."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def write_kv(self, key: Tensor, value: Tensor, cache: Sequence[Tensor], slot_mapping: Tensor) -> None:
        """The kernel of op `kv_write`."""
        slots = slot_mapping.long()
        for source, plane in zip((key, value), cache, strict=True):
            _by_slot(plane).index_copy_(0, slots, source.to(plane.dtype))

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
        """The kernel of op `attention`."""
        tables = (block_table, query_start, seq_lens)
        block_size = cache[0].shape[1]
        keys, values = (_by_slot(plane) for plane in cache)

        for piece in self._pieces(tables, block_size, window, query.dtype):
            key, value = (plane.index_select(0, piece.slots).to(query.dtype) for plane in (keys, values))
            attended = torch.nn.functional.scaled_dot_product_attention(
                _heads(query[piece.rows], piece.batch, head_dim),
                _heads(key, piece.batch, head_dim),
                _heads(value, piece.batch, head_dim),
                attn_mask=piece.mask,
                scale=scale,
                enable_gqa=True,
            )
            out[piece.rows] = attended.transpose(1, 2).flatten(2).flatten(0, 1)

    def _pieces(
        self, tables: tuple[Tensor, Tensor, Tensor], block_size: int, window: int | None, dtype: torch.dtype
    ) -> list[Piece]:
        if self._kept is None:
            return list(cut(*tables, block_size, window, dtype))
        key = (*(table.data_ptr() for table in tables), block_size, window, dtype)
        if key not in self._kept:
            self._kept[key] = list(cut(*tables, block_size, window, dtype))
        return self._kept[key]


def cut(
    block_table: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    block_size: int,
    window: int | None,
    dtype: torch.dtype,
) -> Iterator[Piece]:
    """A step in pieces: sequences of one row by the batch, others up to `_ROWS` rows at a time.

    A piece reads only positions that one of its rows sees: what lies in other slots may be stale, and 0 * NaN is NaN.
    """
    table, starts, lengths = block_table.numpy(), query_start.numpy(), seq_lens.numpy()
    rows = np.diff(starts)
    for group in _groups(np.flatnonzero(rows == 1), lengths):
        yield _singles(table[group], starts[group], lengths[group], block_size, window, dtype)
    for index in np.flatnonzero(rows > 1):
        context = int(lengths[index] - rows[index])  # tokens before this step's first
        for first in range(0, int(rows[index]), _ROWS):
            last = min(first + _ROWS, int(rows[index]))
            positions = np.arange(context + first, context + last)
            span = slice(int(starts[index]) + first, int(starts[index]) + last)
            yield _run(table[index], span, positions, block_size, window, dtype)


def _groups(singles: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Sequences of one row, in batches that padded to their longest gather at most `_POSITIONS`: like with like."""
    if len(singles) and len(singles) * lengths[singles].max() > _POSITIONS:
        singles = singles[np.argsort(lengths[singles], kind="stable")]
    while len(singles):
        padded = np.arange(1, len(singles) + 1) * np.maximum.accumulate(lengths[singles])
        count = max(1, int(np.searchsorted(padded, _POSITIONS, side="right")))
        yield singles[:count]
        singles = singles[count:]


def _singles(
    table: np.ndarray[Any, Any],
    rows: np.ndarray[Any, Any],
    lengths: np.ndarray[Any, Any],
    block_size: int,
    window: int | None,
    dtype: torch.dtype,
) -> Piece:
    """Each sequence's last token. Padding repeats a sequence's last position: it is its own and never stale."""
    seen = lengths if window is None else np.minimum(lengths, window)
    steps = np.arange(seen.max())
    positions = (lengths - seen)[:, None] + np.minimum(steps, seen[:, None] - 1)
    mask = None if (seen == seen[0]).all() else _mask(steps >= seen[:, None], dtype)[:, None, None]
    slots = np.take_along_axis(table, positions // block_size, 1) * block_size + positions % block_size
    together = int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((np.diff(rows) == 1).all())
    span = slice(int(rows[0]), int(rows[-1]) + 1) if together else torch.from_numpy(rows)
    return Piece(len(rows), span, torch.from_numpy(slots.ravel()).long(), mask)


def _run(
    blocks: np.ndarray[Any, Any],
    rows: slice,
    positions: np.ndarray[Any, Any],
    block_size: int,
    window: int | None,
    dtype: torch.dtype,
) -> Piece:
    """Consecutive rows of one sequence, at `positions`."""
    first = 0 if window is None else max(0, int(positions[0]) - window + 1)
    context = np.arange(first, int(positions[-1]) + 1)
    distance = positions[:, None] - context
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    slots = blocks[context // block_size] * block_size + context % block_size
    return Piece(1, rows, torch.from_numpy(slots).long(), _mask(hidden, dtype)[None, None])


def _mask(hidden: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden), float("-inf"))


def _by_slot(plane: Tensor) -> Tensor:
    """Blocks as rows: [num_blocks, block_size, heads, D] -> [slots, heads * D]."""
    return plane.flatten(0, 1).flatten(1)


def _heads(rows: Tensor, batch: int, head_dim: int) -> Tensor:
    """[batch * rows, heads * D] -> [batch, heads, rows, D]."""
    heads: Tensor = rows.unflatten(-1, (-1, head_dim)).unflatten(0, (batch, -1))
    return heads.transpose(1, 2)
