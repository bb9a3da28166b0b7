"""Paged attention over ragged batches for a compiler: every shape is fixed by the step's bucket.

The query rows of a step are cut into tiles of `B` rows, each of one sequence. A step of T rows in S sequences has at
most (T + S (B - 1)) / B of them, whatever its lengths, so their number is fixed too. A tile gathers its sequence's
blocks by the block table and attends to all of them at once, what it may not see masked out. Where each sequence has
one row, B is one and nothing is computed that is not wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.defaults import ReferenceAttention
from core.platform import AttentionQuery, KVLayout

_TILE_ROWS = 64
_HIDDEN = -1e30  # not -inf: a row that sees nothing is padding, and stays finite


@dataclass(frozen=True)
class Tiles:
    """A step's tiles: N of B rows. What depends on lengths alone; the same in every layer.

    `sequences` [N] is each tile's sequence and `tokens` [N, B] the step's rows it takes; rows beyond a sequence's end
    repeat some other. `positions` [N, B] are the rows' places in their sequence, and `lengths` [N] the KV positions
    that it has. `places` [T] finds a row's result: tile * B + row in the tile.
    """

    sequences: Tensor
    tokens: Tensor
    positions: Tensor
    lengths: Tensor
    places: Tensor


def cut_tiles(num_tokens: int, query_start: Tensor, seq_lens: Tensor) -> Tiles:
    """The tiles of a step of `num_tokens` rows; query_start [S + 1], seq_lens [S]."""
    num_seqs = seq_lens.shape[0]
    rows = 1 if num_tokens <= num_seqs else min(_TILE_ROWS, num_tokens)
    count = (num_tokens + num_seqs * (rows - 1)) // rows
    device = query_start.device
    starts, counts = query_start[:-1], query_start[1:] - query_start[:-1]
    tiles = (counts + rows - 1) // rows
    ends = torch.cumsum(tiles, 0)
    begins = ends - tiles

    index = torch.arange(count, device=device)
    sequences = (index[:, None] >= ends[None, :]).sum(1).clamp(max=num_seqs - 1)
    in_sequence = ((index - begins[sequences]) * rows)[:, None] + torch.arange(rows, device=device)[None, :]
    tokens = (starts[sequences][:, None] + in_sequence).clamp(max=num_tokens - 1)
    positions = (seq_lens - counts)[sequences][:, None] + in_sequence

    token = torch.arange(num_tokens, device=device)
    owner = (token[:, None] >= query_start[1:][None, :]).sum(1).clamp(max=num_seqs - 1)
    own_row = token - starts[owner]
    places = (begins[owner] * rows + own_row).clamp(0, count * rows - 1)
    return Tiles(sequences, tokens, positions, seq_lens[sequences], places)


def attend(
    query: Tensor,
    cache: Sequence[Tensor],
    block_table: Tensor,
    tiles: Tiles,
    *,
    head_dim: int,
    num_kv_heads: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """query [T, heads * D] over cache planes [num_blocks, block_size, kv_heads, D] -> [T, heads * D]."""
    count, rows = tiles.tokens.shape
    positions = torch.arange(block_table.shape[1] * cache[0].shape[1], device=query.device)
    reach = positions[None, None, :] <= tiles.positions[:, :, None]  # [N, B, L]
    held = positions[None, :] < tiles.lengths[:, None]  # [N, L]: others' data, or none, lies beyond
    if window is not None:
        reach &= positions[None, None, :] > tiles.positions[:, :, None] - window
        held &= positions[None, :] > tiles.positions[:, :1] - window
    reach &= held[:, None, :]

    blocks = block_table[tiles.sequences]  # [N, blocks of a sequence]
    keys, values = (plane[blocks].reshape(count, -1, num_kv_heads, head_dim) for plane in cache)
    heads = query[tiles.tokens].reshape(count, rows, num_kv_heads, -1, head_dim)
    scores = torch.einsum("nbkgd,nlkd->nkgbl", heads.float(), keys.float()) * scale
    weights = scores.masked_fill(~reach[:, None, None], _HIDDEN).softmax(-1)
    # 0 * NaN is NaN: what a stale block holds must not reach the sum.
    held_values = values.float().masked_fill(~held[:, :, None, None], 0.0)
    result = torch.einsum("nkgbl,nlkd->nbkgd", weights, held_values)
    return result.reshape(count * rows, -1)[tiles.places].to(query.dtype)


def written(plane: Tensor, rows: Tensor, slot_mapping: Tensor) -> Tensor:
    """A plane with `rows` [T, kv_heads * D] at `slot_mapping` [T] = block * block_size + offset."""
    slots = plane.reshape(-1, *plane.shape[2:])
    new = rows.reshape(-1, *plane.shape[2:]).to(plane.dtype)
    return slots.index_copy(0, slot_mapping.long(), new).reshape(plane.shape)


class GatheredAttention(ReferenceAttention):
    """Planes are keys and values, blocks [block_size, num_kv_heads, head_dim]: a token's keys are one run of memory."""

    name = "xla-gathered"

    def __init__(self, sync: Callable[[], object]) -> None:
        """`sync` runs what has been traced so far."""
        self._sync = sync

    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        """Two planes of [block_size, num_kv_heads, head_dim] blocks."""
        return KVLayout((query.block_size, query.num_kv_heads, query.head_dim), query.kv_dtype)

    def write_kv(self, key: Any, value: Any, cache: Sequence[Any], slot_mapping: Any) -> None:
        """Rows of key and value [T, kv_heads * D] to `slot_mapping` [T]."""
        for source, plane in zip((key, value), cache, strict=True):
            plane.copy_(written(plane, source, slot_mapping))

    def forward(self, *args: Any, **attrs: Any) -> None:
        """One call by itself; a program cuts its tiles once for all layers."""
        query, cache, block_table, query_start, seq_lens, out = args
        tiles = cut_tiles(query.shape[0], query_start, seq_lens)
        out.copy_(attend(query, cache, block_table, tiles, **attrs))

    def copy_blocks(self, cache: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> None:
        """Pair after pair, with the numbers as data: one program serves them all."""
        for pair in pairs:
            source, destination = (torch.tensor([block]).to(cache[0].device) for block in pair)
            for plane in cache:
                plane.index_copy_(0, destination, plane.index_select(0, source))
            self._sync()
