"""The tiles of attention for compilers against the reference, on plain torch tensors."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import ops
from platforms._shared.xla.attention import attend, cut_tiles, written

HEADS, KV_HEADS, WIDTH, BLOCK = 4, 2, 8, 4


def _step(spans: list[tuple[int, int]], tokens: int, seqs: int, seed: int) -> dict[str, torch.Tensor]:
    """A step of (length, new tokens) sequences, padded; blocks in random order, those that nobody holds poisoned."""
    generator = torch.Generator().manual_seed(seed)
    per_sequence = max(-(-length // BLOCK) for length, _ in spans)
    order = torch.randperm(per_sequence * len(spans), generator=generator) + 1
    planes = [torch.full((len(order) + 1, BLOCK, KV_HEADS, WIDTH), float("nan")) for _ in ("keys", "values")]
    table = torch.zeros(seqs, per_sequence, dtype=torch.int32)
    for index, (length, _) in enumerate(spans):
        blocks = order[index * per_sequence : index * per_sequence + -(-length // BLOCK)]
        table[index, : len(blocks)] = blocks
        slots = blocks.repeat_interleave(BLOCK)[:length] * BLOCK + torch.arange(length) % BLOCK
        for plane in planes:
            plane.copy_(written(plane, torch.randn(length, KV_HEADS * WIDTH, generator=generator), slots.int()))
    for plane in planes:
        plane[0] = 0.0  # padding reads and writes the null block
    starts = torch.tensor([0, *(new for _, new in spans)]).cumsum(0)
    return {
        "query": torch.randn(tokens, HEADS * WIDTH, generator=generator),
        "keys": planes[0],
        "values": planes[1],
        "block_table": table,
        "query_start": torch.cat([starts, starts[-1:].expand(seqs - len(spans))]).int(),
        "seq_lens": torch.tensor([length for length, _ in spans] + [0] * (seqs - len(spans)), dtype=torch.int32),
    }


def _reference(step: dict[str, torch.Tensor], used: int, window: int | None) -> torch.Tensor:
    out = torch.zeros(used, HEADS * WIDTH)
    cache = [step[name].transpose(1, 2) for name in ("keys", "values")]
    ops.attention_reference(
        step["query"][:used], cache, step["block_table"], step["query_start"], step["seq_lens"], out,
        head_dim=WIDTH, num_kv_heads=KV_HEADS, scale=0.3, window=window,
    )  # fmt: skip
    return out


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)).map(lambda s: (max(s), min(s))), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 9),
    st.sampled_from([None, 1, 5, 33]),
    st.integers(0, 2**31),
)
def test_tiles_attend_as_the_reference(
    spans: list[tuple[int, int]], more_seqs: int, more_tokens: int, window: int | None, seed: int
) -> None:
    used = sum(new for _, new in spans)
    step = _step(spans, used + more_seqs + more_tokens, len(spans) + more_seqs, seed)
    tiles = cut_tiles(len(step["query"]), step["query_start"], step["seq_lens"])
    found = attend(
        step["query"], (step["keys"], step["values"]), step["block_table"], tiles,
        head_dim=WIDTH, num_kv_heads=KV_HEADS, scale=0.3, window=window,
    )  # fmt: skip
    torch.testing.assert_close(found[:used], _reference(step, used, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seqs", [1, 7, 32])
def test_decoding_computes_one_row_a_sequence(seqs: int) -> None:
    random.seed(seqs)
    spans = [(random.randint(1, 20), 1) for _ in range(seqs)]
    step = _step(spans, seqs, seqs, 0)
    tiles = cut_tiles(seqs, step["query_start"], step["seq_lens"])
    assert tiles.tokens.shape == (seqs, 1)
    assert tiles.tokens[:, 0].tolist() == list(range(seqs))
