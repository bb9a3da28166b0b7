"""Causal attention over the paged KV cache: online softmax (FlashAttention, Dao 2022) over blocks found by a table
(PagedAttention, Kwon et al. 2023), the context split over programs where there are few rows (Flash-Decoding, 2023).

A program has BLOCK_M rows of one KV head: the query heads that share it, for BLOCK_M // group tokens of one sequence. So
a decode step fills the rows of a matrix unit with heads, and a prefill with tokens. Tiles are counted over the ragged
batch without asking the host: sequence s begins at tile query_start[s] // tokens + s, which leaves a few tiles empty.
"""

from __future__ import annotations

import triton
import triton.language as tl

NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _sequence_of(tile, query_start, num_seqs, TOKENS: tl.constexpr):
    """The last sequence that begins at or before `tile`."""
    low, high = 0, num_seqs - 1
    while low < high:
        middle = (low + high + 1) // 2
        begins = tl.load(query_start + middle) // TOKENS + middle
        if begins <= tile:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def _keys_at(plane, blocks, offsets, head, head_dim, block_stride, head_stride, seen, DIM: tl.constexpr):
    """One row a position, [N, DIM]; zeros where nothing is seen, so that a stale NaN is never read."""
    dim = tl.arange(0, DIM)
    places = blocks * block_stride + head * head_stride + offsets * head_dim
    return tl.load(plane + places[:, None] + dim[None, :], mask=seen[:, None] & (dim < head_dim)[None, :], other=0.0)


@triton.jit
def _scales_at(scales, blocks, offsets, head, head_dim, block_size, block_stride, head_stride, seen):
    places = blocks * (block_stride // 4) + head * (head_stride // 4) + block_size * head_dim // 4 + offsets
    return tl.load(scales + places, mask=seen, other=0.0)


@triton.jit
def _attend(
    q, positions, first, low, high, keys, values, key_scales, value_scales, table, head, head_dim, block_size,
    block_stride, head_stride, scale, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
    WINDOW: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Rows q [BLOCK_M, DIM] over the positions from `low` to `high`, of which those before `first` are not read.

    Returns sums [BLOCK_M, DIM] float32 of the values times exp2(score - most), the sums of these weights, and `most`.
    """
    most = tl.full([BLOCK_M], NEGATIVE_INFINITY, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(low, high, BLOCK_N):
        at = start + tl.arange(0, BLOCK_N)
        seen = (at >= first) & (at < high)
        blocks = tl.load(table + at // block_size, mask=seen, other=0).to(tl.int64)
        offsets = at % block_size
        k = _keys_at(keys, blocks, offsets, head, head_dim, block_stride, head_stride, seen, DIM).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        if INT8:
            scores *= _scales_at(
                key_scales, blocks, offsets, head, head_dim, block_size, block_stride, head_stride, seen
            )[None, :]
        distance = positions[:, None] - at[None, :]
        visible = (distance >= 0) & seen[None, :]
        if WINDOW:
            visible = visible & (distance < window)
        scores = tl.where(visible, scores, NEGATIVE_INFINITY)
        highest = tl.maximum(most, tl.max(scores, axis=1))
        shift = tl.where(highest == NEGATIVE_INFINITY, 0.0, highest)  # no position of this row so far
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(most - shift)
        total = total * decay + tl.sum(weights, axis=1)
        v = _keys_at(values, blocks, offsets, head, head_dim, block_stride, head_stride, seen, DIM).to(q.dtype)
        if INT8:
            weights *= _scales_at(
                value_scales, blocks, offsets, head, head_dim, block_size, block_stride, head_stride, seen
            )[None, :]
        sums = sums * decay[:, None] + tl.dot(weights.to(q.dtype), v, input_precision="ieee")
        most = highest
    return sums, total, most


@triton.jit
def paged_attention(
    query, keys, values, key_scales, value_scales, block_table, query_start, seq_lens, out, partial, partial_sums,
    query_stride, out_stride, table_stride, block_stride, num_seqs, kv_heads, head_dim, block_size, scale, window,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr,
    WINDOW: tl.constexpr, INT8: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Grid: [tiles, kv_heads, SPLITS]. DIM >= head_dim, GROUP query heads a KV head.

    With one split the result goes to `out`. With more, a row's sums go to partial [T, heads, SPLITS, DIM], normed for
    their split, and the logarithm of their weights' sum to partial_sums [T, heads, SPLITS]; `combine_splits` follows.
    WIDEN: compute in float32, where the cache has another type than the query.
    """
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    sequence = _sequence_of(tile, query_start, num_seqs, TOKENS)
    begins = tl.load(query_start + sequence)
    rows = tl.load(query_start + sequence + 1) - begins
    token = (tile - begins // TOKENS - sequence) * TOKENS
    if token >= rows:
        return
    m = tl.arange(0, BLOCK_M)
    own = (m < TOKENS * GROUP) & (token + m // GROUP < rows)
    length = tl.load(seq_lens + sequence)
    positions = length - rows + token + m // GROUP
    high = length - rows + tl.minimum(token + TOKENS, rows)
    first = 0
    if WINDOW:
        first = tl.maximum(length - rows + token - window + 1, 0)
    # Tiles of keys begin at multiples of BLOCK_N, whatever the window, and are shared out in whole ones.
    start = first // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(high - start, BLOCK_N), SPLITS) * BLOCK_N
    low = start + split * share
    row = (begins + token + m // GROUP).to(tl.int64)
    query_head = head * GROUP + m % GROUP
    dim = tl.arange(0, DIM)
    inside = own[:, None] & (dim < head_dim)[None, :]
    q = tl.load(query + (row * query_stride + query_head * head_dim)[:, None] + dim[None, :], mask=inside, other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    sums, total, most = _attend(
        q, positions, first, low, tl.minimum(low + share, high), keys, values, key_scales, value_scales,
        block_table + sequence.to(tl.int64) * table_stride, head, head_dim, block_size, block_stride,
        block_stride // kv_heads, scale, window, BLOCK_M, BLOCK_N, DIM, WINDOW, INT8,
    )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # this split has no position of the row, and `most` is -inf
    result = sums / total[:, None]
    if SPLITS == 1:
        target = out + (row * out_stride + query_head * head_dim)[:, None] + dim[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=inside)
    else:
        place = (row * (kv_heads * GROUP) + query_head) * SPLITS + split
        tl.store(partial + place[:, None] * DIM + dim[None, :], result, mask=inside)
        tl.store(partial_sums + place, most + tl.log2(total), mask=own)


@triton.jit
def combine_splits(
    partial, partial_sums, query_start, num_seqs, out, out_stride, heads, head_dim,
    SPLITS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """The splits' results, weighed by their sums. Grid: [T, heads]; rows of no sequence are left as they are."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if row >= tl.load(query_start + num_seqs):
        return
    split, dim = tl.arange(0, SPLITS), tl.arange(0, DIM)
    place = (row * heads + head) * SPLITS + split
    logs = tl.load(partial_sums + place)
    weights = tl.exp2(logs - tl.max(logs, axis=0))
    inside = dim < head_dim
    parts = tl.load(partial + place[:, None] * DIM + dim[None, :], mask=inside[None, :], other=0.0)
    result = tl.sum(parts * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    tl.store(out + row * out_stride + head * head_dim + dim, result.to(out.dtype.element_ty), mask=inside)
