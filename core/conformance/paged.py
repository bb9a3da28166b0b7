"""One attention step on a device: a cache that only the backend's own writes fill, padded where buckets are declared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.conformance import steps
from core.conformance.bounds import FLOATS, bound, deviation, int8_kv
from core.conformance.buffers import Held
from core.conformance.cases import Numbers
from core.conformance.failures import expect
from core.conformance.steps import Span, Step
from core.conformance.subject import Subject
from core.platform import AttentionBackend, AttentionQuery, Bucket, KVLayout
from core.types import DType


@dataclass(frozen=True)
class Served:
    """A backend with a layer's question, which it said yes to."""

    backend: AttentionBackend
    query: AttentionQuery

    @property
    def scale(self) -> float:
        """What models give with the op."""
        return float(self.query.head_dim**-0.5)

    def __str__(self) -> str:
        q = self.query
        window = "" if q.window is None else f", window {q.window}"
        kv = "" if q.kv_dtype == q.dtype else f" over {q.kv_dtype} KV"
        return f"{self.backend.name} {q.dtype}{kv}, {q.num_heads}/{q.num_kv_heads} heads of {q.head_dim}{window}"


class Cache:
    """One layer's blocks."""

    def __init__(self, subject: Subject, each: Served, num_blocks: int, *, poisoned: bool = False) -> None:
        self.layout: KVLayout = each.backend.kv_layout(each.query)
        self._buffers = subject.buffers
        shape = (num_blocks, *self.layout.block_shape)
        self.planes = tuple(subject.buffers.alloc(shape, self.layout.dtype, "kv") for _ in range(self.layout.planes))
        if poisoned and self.layout.dtype in FLOATS:
            for plane in self.planes:
                subject.buffers.memory.upload(plane, torch.full(shape, float("nan")))

    def read(self) -> list[Tensor]:
        """Copies of the planes on the host."""
        self._buffers.memory.synchronize()
        return [self._buffers.memory.download(plane).clone() for plane in self.planes]


def write(
    subject: Subject, each: Served, cache: Cache, kv: tuple[Tensor, Tensor], slots: Tensor, *, views: bool
) -> None:
    """kv_write, in steps that the platform's buckets admit."""
    put = subject.buffers.put_view if views else subject.buffers.put
    for start, stop, room in _portions(subject, len(slots)):
        padded = [_pad_rows(tensor[start:stop], room) for tensor in kv]
        key, value = (put(tensor, each.query.dtype).handle for tensor in padded)
        where = subject.buffers.put(_pad_rows(slots[start:stop], room), DType.INT32)
        each.backend.write_kv(key, value, cache.planes, where.handle)


def _portions(subject: Subject, rows: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, rows with padding) of parts that fit a step."""
    buckets = subject.capabilities.buckets
    most = max((b.num_tokens for b in buckets), default=rows)
    for start in range(0, rows, max(most, 1)):
        stop = min(rows, start + most)
        fitting = [b.num_tokens for b in buckets if b.num_tokens >= stop - start]
        yield start, stop, min(fitting, default=stop - start)


def _pad_rows(tensor: Tensor, rows: int) -> Tensor:
    """Zeros below: padding writes to slot 0, in the null block."""
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


def _padded(step: Step, shape: Bucket) -> Step:
    """The step as the runner pads it to a bucket."""
    more = shape.num_seqs - len(step.seq_lens)
    return replace(
        step,
        query=_pad_rows(step.query, shape.num_tokens),
        block_table=_pad_rows(step.block_table, shape.num_seqs),
        query_start=torch.cat([step.query_start, step.query_start[-1:].expand(more)]),
        seq_lens=_pad_rows(step.seq_lens, shape.num_seqs),
    )


def bucket_of(subject: Subject, step: Step) -> Bucket:
    """The smallest declared shape that holds a step, or its own."""
    own = Bucket(step.tokens, len(step.seq_lens))
    fitting = [b for b in subject.capabilities.buckets if b.num_tokens >= own.num_tokens and b.num_seqs >= own.num_seqs]
    return min(fitting, default=own, key=lambda b: (b.num_tokens * b.num_seqs, b))


def fitting(subject: Subject, sequences: Sequence[Span]) -> list[list[Span]]:
    """The sequences in as few steps as the largest bucket admits."""
    buckets = subject.capabilities.buckets
    tokens = max((b.num_tokens for b in buckets), default=math.inf)
    seqs = max((b.num_seqs for b in buckets), default=math.inf)
    parts: list[list[Span]] = [[]]
    for each in sequences:
        sequence = Span(each.length, int(min(each.new, tokens)))
        if sum(s.new for s in parts[-1]) + sequence.new > tokens or len(parts[-1]) >= seqs:
            parts.append([])
        parts[-1].append(sequence)
    return [part for part in parts if any(s.new for s in part)]


def attend(subject: Subject, each: Served, step: Step, cache: Cache, *, views: bool) -> tuple[Tensor, Held]:
    """forward on the device: the rows that are no padding, and the output buffer."""
    shape, buffers, query = bucket_of(subject, step), subject.buffers, each.query
    padded = _padded(step, shape)
    put = buffers.put_view if views else buffers.put
    out = buffers.out((shape.num_tokens, query.num_heads * query.head_dim), query.dtype)
    tables = [buffers.put(t, DType.INT32, "inputs") for t in (padded.block_table, padded.query_start, padded.seq_lens)]
    each.backend.forward(
        put(padded.query, query.dtype).handle,
        cache.planes,
        *(held.handle for held in tables),
        out.handle,
        head_dim=query.head_dim,
        num_kv_heads=query.num_kv_heads,
        scale=each.scale,
        window=query.window,
    )
    return out.read()[: step.tokens], out


def check_step(
    subject: Subject, each: Served, sequences: Sequence[Span], *, views: bool = False, poisoned: bool = False
) -> tuple[float, float]:
    """Write the past, then the step's own keys and values, attend, and compare.

    Returns the worst error, and what it may have been. Raises Broken beyond that.
    """
    worst = (0.0, 0.0)
    for part in fitting(subject, sequences):
        step = steps.make(Numbers(f"{each.query}"), each.query, part)
        cache = Cache(subject, each, step.num_blocks, poisoned=poisoned)
        write(subject, each, cache, (step.past_key, step.past_value), step.past_slots, views=views)
        write(subject, each, cache, (step.key, step.value), step.slots, views=views)
        got, _ = attend(subject, each, step, cache, views=views)
        worst = max(worst, _compare(each, step, got, part))
        subject.tidy()
    return worst


def _compare(each: Served, step: Step, got: Tensor, part: Sequence[Span]) -> tuple[float, float]:
    wanted, magnitude = steps.expected(step, each.query, each.scale)
    limit = bound("attention", each.query.dtype, steps.terms(step, each.query, each.scale))
    if each.query.kv_dtype is DType.INT8:
        limit += int8_kv(steps.int8_score_error(step, each.query, each.scale))
        magnitude = torch.cat([step.past_value, step.value]).abs().max().expand_as(wanted)
    worst = 0.0
    for index, sequence in enumerate(part):
        rows = slice(int(step.query_start[index]), int(step.query_start[index + 1]))
        if sequence.new:
            error = deviation(got[rows], wanted[rows], magnitude[rows], each.query.dtype)
            what = f"{sequence.new} new of {sequence.length} tokens, blocks of {each.query.block_size}"
            expect(error <= limit, f"{each}, {what}: off by {error:.3g} of its magnitude, {limit:.3g} is allowed")
            worst = max(worst, error)
    return worst, limit
