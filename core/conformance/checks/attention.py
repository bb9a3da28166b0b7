"""Level ops: attention over the paged cache. The backend owns the layout, so only its own writes fill it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.conformance import steps
from core.conformance.bounds import FLOATS
from core.conformance.buffers import same_bits, untouched
from core.conformance.cases import Numbers
from core.conformance.failures import Broken, NotClaimed, expect
from core.conformance.paged import Cache, Served, attend, bucket_of, check_step, fitting, write
from core.conformance.registry import check
from core.conformance.report import OpSupport
from core.conformance.steps import Span
from core.conformance.subject import Subject
from core.errors import Unsupported
from core.platform import AttentionQuery
from core.types import DType

#: (heads, KV heads, head_dim): each head its own KV, groups of four, all heads on one, wide and odd heads.
_HEADS = ((4, 4, 16), (8, 2, 16), (6, 1, 32), (4, 2, 64), (2, 1, 128), (3, 3, 20))
_BLOCK = 16
_WINDOW = 21


def _question(subject: Subject, heads: tuple[int, int, int] = (4, 2, 16), **changes: Any) -> AttentionQuery:
    query = AttentionQuery(
        head_dim=heads[2],
        num_heads=heads[0],
        num_kv_heads=heads[1],
        window=None,
        dtype=subject.dtype,
        kv_dtype=subject.dtype,
        block_size=_BLOCK,
    )
    return replace(query, **changes)


def _serving(subject: Subject, query: AttentionQuery) -> Iterator[Served]:
    """Every backend that says yes to `query`."""
    backends = subject.platform.attention()
    if not backends:
        raise NotClaimed("attention() is empty; the platform runs models by an executor of its own")
    for backend in backends:
        if backend.supports(query):
            yield Served(backend, query)


def _each(
    subject: Subject, feature: str, queries: Sequence[AttentionQuery], examine: Callable[[Served], object]
) -> None:
    """Examine every backend for every question it says yes to, and note the feature. Raises NotClaimed if there is none."""
    reasons = []
    for query in queries:
        bounds = list(_serving(subject, query))
        for each in bounds:
            examine(each)
            subject.tidy()
        if not bounds:
            reasons += [f"{b.name}: {b.supports(query).reason}" for b in subject.platform.attention()]
            expect(not any(reason.endswith(": ") for reason in reasons), f"supports() refuses {query} and says not why")
    if len(reasons) >= len(queries):
        subject.findings.attention[feature] = reasons[0]
        raise NotClaimed(reasons[0])
    subject.findings.attention[feature] = True


# --- the checks ----------------------------------------------------------------------------------------------


@check("attention.types", "ops", "a KV type that is declared halves the cache for whoever sets --kv-cache-dtype")
def types(subject: Subject) -> None:
    """Every pair of declared types is served, within its bound, on a mixed step."""
    if not subject.platform.attention():
        raise NotClaimed("attention() is empty; the platform runs models by an executor of its own")
    for dtype, kv_dtype in itertools.product(subject.capabilities.dtypes, subject.capabilities.kv_dtypes):
        query = _question(subject, dtype=dtype, kv_dtype=kv_dtype)
        bounds = list(_serving(subject, query))
        if not bounds:
            reason = "; ".join(f"{b.name}: {b.supports(query).reason}" for b in subject.platform.attention())
            expect(
                dtype is not kv_dtype, f"{dtype} is declared for both models and KV, and no backend serves it: {reason}"
            )
            continue
        if kv_dtype not in (*FLOATS, DType.INT8):
            continue  # quantised in a way of the backend's own: its error is the platform's to state
        worst, limit = max(check_step(subject, each, steps.mixed(_BLOCK)) for each in bounds)
        if dtype is kv_dtype:
            subject.findings.ops.append(
                OpSupport(op="attention", dtype=str(dtype), supported=True, worst_error=worst, bound=limit)
            )


@check("attention.heads", "ops", "a query head that reads its neighbour's KV head still gives fluent text")
def heads(subject: Subject) -> None:
    """Multi-head, grouped-query and multi-query attention, at several widths."""
    for shape in _HEADS:
        kind = {1: "multi-query"}.get(shape[1], "multi-head" if shape[0] == shape[1] else "grouped-query")
        name = f"{kind}, {shape[0]}/{shape[1]} heads of {shape[2]}"
        try:
            _each(subject, name, [_question(subject, shape)], lambda e: check_step(subject, e, steps.mixed(_BLOCK)))
        except NotClaimed:
            if not subject.platform.attention():
                raise


@check(
    "attention.lengths", "ops", "an error at a block's edge comes once in every sixteen tokens, and looks like chance"
)
def lengths(subject: Subject) -> None:
    """Contexts of 1, of a block less and more one, of several blocks, as prefill and as decode, at three block sizes."""
    queries = [_question(subject, block_size=size) for size in (_BLOCK, 8, 32)]
    _each(subject, "contexts of any length", queries, lambda e: check_step(subject, e, steps.edges(e.query.block_size)))


@check("attention.window", "ops", "a window that is off by one, or ignored, shows only on prompts longer than it")
def window(subject: Subject) -> None:
    """Sliding windows: shorter and longer than a block, of one token, longer than the context."""
    queries = [_question(subject, window=size) for size in (_WINDOW, 1, _BLOCK, 500)]
    _each(subject, "sliding window", queries, lambda e: check_step(subject, e, steps.mixed(_BLOCK)))


@check("attention.scale", "ops", "a model's scale is an attribute; most models would hide that it is ignored")
def scale(subject: Subject) -> None:
    """The given scale counts, not one over the root of the head's width."""

    class Scaled(Served):
        @property
        def scale(self) -> float:
            return 0.37

    _each(
        subject,
        "any softmax scale",
        [_question(subject)],
        lambda e: check_step(subject, Scaled(e.backend, e.query), steps.mixed(_BLOCK)),
    )


@check("attention.stale_blocks", "ops", "blocks are reused without being cleared; what they held may be NaN")
def stale_blocks(subject: Subject) -> None:
    """Nothing is read of slots that nobody wrote, of other blocks, or of the null block, all of which are NaN here."""
    queries = [_question(subject), _question(subject, window=_WINDOW)]
    for sequences in (steps.mixed(_BLOCK), steps.edges(_BLOCK)):
        _each(subject, "stale blocks", queries, partial(_check_poisoned, subject, sequences))


def _check_poisoned(subject: Subject, sequences: Sequence[Span], each: Served) -> None:
    check_step(subject, each, sequences, poisoned=True)


@check(
    "attention.views", "ops", "q, k and v are columns of one product; a kernel that takes them for whole reads v as k"
)
def views(subject: Subject) -> None:
    """Queries, keys and values as columns of wider tensors."""
    if not isinstance(subject.buffers.alloc((4, 4), subject.dtype), Tensor):
        raise NotClaimed("handles are opaque: only the platform's own compiler makes views of them")
    _each(
        subject,
        "strided q, k, v",
        [_question(subject)],
        lambda e: check_step(subject, e, steps.mixed(_BLOCK), views=True),
    )


@check(
    "attention.padding", "ops", "padding that writes into a live block corrupts a request that is not even in the step"
)
def padding(subject: Subject) -> None:
    """Rows of padding, which have slot 0, write to the null block only, and padded sequences change no real row."""

    def examine(each: Served) -> None:
        step = steps.make(Numbers("padding"), each.query, [Span(5, 5), Span(_BLOCK + 2, 1)])
        cache = Cache(subject, each, step.num_blocks)
        write(subject, each, cache, (step.past_key, step.past_value), step.past_slots, views=False)
        write(subject, each, cache, (step.key, step.value), step.slots, views=False)
        before = cache.read()
        rows = 4
        ones = torch.full((rows, each.query.num_kv_heads * each.query.head_dim), 9.0)
        write(subject, each, cache, (ones, ones), torch.zeros(rows, dtype=torch.int32), views=False)
        for old, new in zip(before, cache.read(), strict=True):
            expect(same_bits(old[1:], new[1:]), f"{each}: a key of slot 0 was written outside of the null block")

    _each(subject, "padding", [_question(subject), _question(subject, (8, 2, 16))], examine)


@check("attention.guards", "ops", "what lies beside q, k, v and the output belongs to others")
def guards(subject: Subject) -> None:
    """Attention writes its output alone: nothing around it, none of its inputs, no block of the cache."""

    def examine(each: Served) -> None:
        (part, *_) = fitting(subject, steps.mixed(_BLOCK))
        step = steps.make(Numbers("guards"), each.query, part)
        cache = Cache(subject, each, step.num_blocks)
        write(subject, each, cache, (step.past_key, step.past_value), step.past_slots, views=True)
        write(subject, each, cache, (step.key, step.value), step.slots, views=True)
        before = cache.read()
        shape = bucket_of(subject, step)
        fresh = subject.buffers.out((shape.num_tokens, each.query.num_heads * each.query.head_dim), each.query.dtype)
        around = fresh.surroundings()
        _, out = attend(subject, each, step, cache, views=True)
        expect(untouched(out.surroundings(), around), f"{each}: attention writes outside of its output")
        expect(all(map(same_bits, cache.read(), before)), f"{each}: attention writes into the cache")

    _each(subject, "guards", [_question(subject)], examine)


@check("attention.nan", "ops", "a NaN that is swallowed is a broken weight or a race that nobody will ever find")
def nan(subject: Subject) -> None:
    """NaN in a query makes its head's output NaN and no other row's or head's."""

    def examine(each: Served) -> None:
        step = steps.make(Numbers("nan"), each.query, [Span(6, 6), Span(9, 1)])
        step.query[2, 1] = float("nan")
        cache = Cache(subject, each, step.num_blocks)
        write(subject, each, cache, (step.past_key, step.past_value), step.past_slots, views=False)
        write(subject, each, cache, (step.key, step.value), step.slots, views=False)
        got, _ = attend(subject, each, step, cache, views=False)
        wanted, _ = steps.expected(step, each.query, each.scale)
        found, due = int(got.isnan().sum()), int(wanted.isnan().sum())
        expect(torch.equal(got.isnan(), wanted.isnan()), f"{each}: {found} results are NaN, {due} are due")

    _each(subject, "NaN", [_question(subject)], examine)


# --- blocks as wholes ----------------------------------------------------------------------------------------


def _filled(subject: Subject, each: Served, num_blocks: int) -> Cache:
    """A cache in which every slot holds numbers of its own."""
    cache = Cache(subject, each, num_blocks)
    slots, width = num_blocks * each.query.block_size, each.query.num_kv_heads * each.query.head_dim
    numbers = Numbers("blocks")
    kv = (numbers.normal(slots, width), numbers.normal(slots, width))
    write(subject, each, cache, kv, torch.arange(slots, dtype=torch.int32), views=False)
    return cache


@check("attention.layout", "ops", "the memory plan counts blocks of this size")
def layout(subject: Subject) -> None:
    """kv_layout() is a value, of a declared type, and a block takes the bytes it says."""

    def examine(each: Served) -> None:
        said, again = (each.backend.kv_layout(each.query) for _ in range(2))
        expect(said == again, f"{each}: kv_layout() says {said} and then {again}")
        memory, shape = subject.platform.memory(), (9, *said.block_shape)
        before = memory.in_use().get("kv", 0)
        Cache(subject, each, 9)
        taken = memory.in_use().get("kv", 0) - before
        size = said.planes * math.prod(shape) * said.dtype.itemsize
        rounded = said.planes * memory.alloc_size(shape, said.dtype)
        expect(size <= taken == rounded, f"{each}: 9 blocks take {taken} bytes, {size} by kv_layout()")

    _each(subject, "layout", [_question(subject), _question(subject, (6, 1, 32))], examine)


@check("attention.copy_blocks", "ops", "forked requests (n > 1) share a prompt by copies of its last block")
def copy_blocks(subject: Subject) -> None:
    """Pairs are copied in order, whole, and nothing else is."""

    def examine(each: Served) -> None:
        cache = _filled(subject, each, 7)
        wanted = [plane.clone() for plane in cache.read()]
        pairs = [(1, 2), (2, 3), (4, 1), (5, 5)]
        for plane, (source, target) in itertools.product(wanted, pairs):
            plane[target] = plane[source]
        each.backend.copy_blocks(cache.planes, pairs)
        expect(
            all(map(same_bits, cache.read(), wanted)), f"{each}: copy_blocks{pairs} left other blocks than it should"
        )

    _each(subject, "copy blocks", [_question(subject), _question(subject, (6, 1, 32))], examine)


@check("attention.kv_transfer", "ops", "another server goes on with these bytes as if it had computed them")
def kv_transfer(subject: Subject) -> None:
    """What export_blocks() gives, import_blocks() puts into other blocks, bit by bit; undeclared, both are refused."""
    if not subject.capabilities.kv_transfer:
        raise NotClaimed("capabilities().kv_transfer is not declared")

    def examine(each: Served) -> None:
        source, target = _filled(subject, each, 6), Cache(subject, each, 8)
        try:
            data = each.backend.export_blocks(source.planes, [4, 1, 5])
            expect(
                data.dtype is torch.uint8 and data.dim() == 2, f"export_blocks() gave {data.dtype} {list(data.shape)}"
            )
            expect(data.device.type == "cpu", "export_blocks() gave a tensor that is not on the host")
            each.backend.import_blocks(target.planes, [7, 2, 3], data.clone())
        except Unsupported as error:
            raise Broken(f"{each}: capabilities() declares kv_transfer: {error}") from error
        for old, new in zip(source.read(), target.read(), strict=True):
            expect(same_bits(old[[4, 1, 5]], new[[7, 2, 3]]), f"{each}: imported blocks are not what was exported")
            untouched = new[[0, 1, 4, 5, 6]]
            expect(not untouched.any(), f"{each}: import_blocks() wrote into other blocks")

    _each(subject, "export and import", [_question(subject), _question(subject, (6, 1, 32))], examine)
