"""Attention steps: sequences with a past in the paged cache, random blocks, and what must come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core import ops
from core.conformance.bounds import FLOATS
from core.conformance.cases import Numbers
from core.defaults import torch_dtype
from core.platform import AttentionQuery
from core.types import NULL_BLOCK


@dataclass(frozen=True)
class Span:
    """One sequence of a step: `new` tokens at the end of a context of `length`."""

    length: int
    new: int


def edges(block: int) -> list[Span]:
    """Lengths around a block's size, as whole prefills and as decodes, one of them long, one without a token."""
    lengths = sorted({1, max(1, block - 1), block, block + 1, 2 * block})
    prefills = [Span(n, n) for n in lengths[:3]]
    decodes = [Span(n, 1) for n in lengths]
    return [*prefills, Span(0, 0), *decodes, Span(3 * block + 1, 1)]


def mixed(block: int) -> list[Span]:
    """A prefill, a later chunk of one, decodes at several lengths, an empty sequence between them."""
    return [
        Span(block + 3, block + 3),
        Span(2 * block + 5, 1),
        Span(3 * block + 2, block + 1),
        Span(0, 0),
        Span(5, 1),
        Span(4 * block, 1),
        Span(7, 7),
    ]


@dataclass(frozen=True)
class Step:
    """A step's host tensors. q, k and v are of the step's tokens, float32 numbers that the types hold exactly.

    `past_*` are the keys and values written by earlier steps.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    slots: Tensor
    past_key: Tensor
    past_value: Tensor
    past_slots: Tensor
    block_table: Tensor
    query_start: Tensor
    seq_lens: Tensor
    num_blocks: int
    tokens: int  # rows that are no padding


def make(numbers: Numbers, query: AttentionQuery, sequences: Sequence[Span]) -> Step:
    """Random numbers for `sequences`, their blocks shuffled.

    What of a block table a sequence does not use holds other sequences' blocks, as rows that were used before do. A
    block that lies wholly before the window of every token of the step is the null block.
    """
    size, width = query.block_size, max(-(-s.length // query.block_size) for s in sequences) + 1
    needed = [-(-s.length // size) for s in sequences]
    order = torch.randperm(sum(needed) + 3, generator=numbers.generator) + 1
    tables, slots, past_slots = [], [], []
    for sequence in sequences:
        count = -(-sequence.length // size)
        blocks, order = order[:count], order[count:]
        where = blocks.repeat_interleave(size)[: sequence.length] * size + torch.arange(sequence.length) % size
        start = sequence.length - sequence.new
        slots.append(where[start:])
        past_slots.append(where[:start])
        tables.append(_row(blocks, _first_read(query, sequence) // size, width, numbers, sum(needed)))
    tokens, past = sum(s.new for s in sequences), sum(s.length - s.new for s in sequences)
    kv_width = query.num_kv_heads * query.head_dim
    q_type = torch_dtype(query.dtype)
    kv_type = torch_dtype(query.kv_dtype) if query.kv_dtype in FLOATS else q_type  # a backend's own scales round

    def random(rows: int, columns: int, *types: torch.dtype) -> Tensor:
        made = numbers.normal(rows, columns)
        for each in types:
            made = made.to(each).float()
        return made

    return Step(
        query=random(tokens, query.num_heads * query.head_dim, q_type),
        key=random(tokens, kv_width, q_type, kv_type),
        value=random(tokens, kv_width, q_type, kv_type),
        slots=torch.cat(slots).int(),
        past_key=random(past, kv_width, q_type, kv_type),
        past_value=random(past, kv_width, q_type, kv_type),
        past_slots=torch.cat(past_slots).int(),
        block_table=torch.stack(tables).int(),
        query_start=torch.tensor([0, *[s.new for s in sequences]]).cumsum(0).int(),
        seq_lens=torch.tensor([s.length for s in sequences]).int(),
        num_blocks=sum(needed) + 4,
        tokens=tokens,
    )


def _first_read(query: AttentionQuery, sequence: Span) -> int:
    """The first position that a token of the step sees."""
    return 0 if query.window is None else max(0, sequence.length - sequence.new - query.window + 1)


def _row(blocks: Tensor, first: int, width: int, numbers: Numbers, highest: int) -> Tensor:
    row = torch.randint(1, max(2, highest), (width,), generator=numbers.generator)
    row[: len(blocks)] = blocks
    row[:first] = NULL_BLOCK
    return row


def expected(step: Step, query: AttentionQuery, scale: float) -> tuple[Tensor, Tensor]:
    """The reference's output [tokens, heads * D], and its magnitude: the same with the values' absolute values."""
    attrs = {"head_dim": query.head_dim, "num_kv_heads": query.num_kv_heads, "scale": scale, "window": query.window}
    results = []
    for value, past_value in ((step.value, step.past_value), (step.value.abs(), step.past_value.abs())):
        shape = (step.num_blocks, query.num_kv_heads, query.block_size, query.head_dim)
        cache = (torch.zeros(shape), torch.zeros(shape))
        ops.kv_write_reference(step.past_key, past_value, cache, step.past_slots)
        ops.kv_write_reference(step.key, value, cache, step.slots)
        out = torch.empty_like(step.query)
        ops.attention_reference(step.query, cache, step.block_table, step.query_start, step.seq_lens, out, **attrs)
        results.append(out)
    return results[0], results[1]


def terms(step: Step, query: AttentionQuery, scale: float) -> int:
    """How many roundings of float32 add up in an output: those of its own sum, and those of a score, as exp passes on
    a score's absolute error as a relative one. A score is off by head_dim u times the sum of its terms' absolute values.
    """
    keys = torch.cat([step.past_key, step.key]).view(-1, query.num_kv_heads, query.head_dim)
    longest = keys.norm(dim=-1).max() * step.query.view(-1, query.num_heads, query.head_dim).norm(dim=-1).max()
    return int(step.seq_lens.max()) + int(query.head_dim * scale * float(longest)) + 1


def int8_score_error(step: Step, query: AttentionQuery, scale: float) -> float:
    """How far off a score can be where each key is off by half a step of int8 (`bounds.int8_kv`)."""
    largest = torch.cat([step.past_key, step.key]).abs().max()
    longest = step.query.view(-1, query.num_heads, query.head_dim).abs().sum(-1).max()
    return float(largest * longest) * scale / 254
