"""The simulation finds bugs: each of these, put into the code, is found by the invariant that is about it."""

from __future__ import annotations

import inspect
import sys
from types import FunctionType
from typing import Any

import msgspec
import pytest
from harness.dice import draw
from harness.trace import Violation
from harness.world import World

from core.cache.manager import CacheManager
from core.cache.pool import BlockPool
from core.engine import client
from core.engine.client import RemoteEngineClient, _Stream
from core.engine.core import Engine
from core.engine.loop import EngineLoop
from core.engine.supervisor import RestartPolicy
from core.scheduler.in_flight import InFlight
from core.scheduler.request import Request, Status
from core.scheduler.scheduler import Scheduler
from core.scheduler.transfers import Transfers
from core.types import NULL_BLOCK

#: Seeds that a bug may take to show.
SEEDS = 400

Patch = pytest.MonkeyPatch


def first_violation() -> Violation | None:
    for seed in range(SEEDS):
        try:
            World(draw(seed)).run()
        except Violation as violation:
            return violation
    return None


# --- the cache -----------------------------------------------------------------------------------------------


def a_block_is_given_back_twice(patch: Patch) -> None:
    """engines-live, owners-are-counted"""
    release = CacheManager.release

    def twice(self: CacheManager, blocks: Any) -> None:
        first = next((block for block in blocks.tables[0] if block != NULL_BLOCK), None)
        release(self, blocks)
        if first is not None:
            self.pools[0].release(first)

    patch.setattr(CacheManager, "release", twice)


def sharing_counts_no_owner(patch: Patch) -> None:
    """owners-are-counted"""

    def share(self: BlockPool, block: int) -> None:
        if self._num_owners[block] == 0:
            del self._free[block]
            self._num_owners[block] = 1

    patch.setattr(BlockPool, "share", share)


def a_window_passes_a_block_too_early(patch: Patch) -> None:
    """reads-what-was-written"""
    first_read = CacheManager._first_read
    patch.setattr(
        CacheManager,
        "_first_read",
        lambda self, window, position: first_read(self, window, position) + (window is not None and position > window),
    )


def eviction_forgets_to_forget_the_hash(patch: Patch) -> None:
    """hashes-name-contents, reads-what-was-written"""

    def allocate(self: BlockPool, count: int) -> list[int]:
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._num_owners[block] = 1
        return blocks

    patch.setattr(BlockPool, "allocate", allocate)


# --- the scheduler -------------------------------------------------------------------------------------------


def a_block_is_found_before_it_is_filled(patch: Patch) -> None:
    """hashes-name-contents, reads-what-was-written"""

    def register(self: Scheduler, request: Any) -> None:
        known = min(request.blocks.capacity, len(request.token_ids))
        self._transfers.offer(request, self._cache.register(request.blocks, request.token_ids, known))

    patch.setattr(Scheduler, "_register", register)


def a_preempted_request_loses_a_token(patch: Patch) -> None:
    """tokens-are-the-references"""
    preempt = Scheduler._preempt

    def losing(self: Scheduler, request: Any) -> None:
        if len(request.token_ids) > request.num_prompt and request.num_tokens == len(request.token_ids):
            request.token_ids.pop()
            request.num_tokens -= 1
        preempt(self, request)

    patch.setattr(Scheduler, "_preempt", losing)


def abort_leaks_the_blocks(patch: Patch) -> None:
    """owners-are-counted"""
    abort = Scheduler.abort

    def leaking(self: Scheduler, request_id: str) -> bool:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self._cache, "release", lambda blocks: None)
            return abort(self, request_id)

    patch.setattr(Scheduler, "abort", leaking)


def deadlines_are_ignored(patch: Patch) -> None:
    """deadlines-are-kept"""
    patch.setattr(Scheduler, "expire", lambda self: [])


def the_most_important_request_is_preempted(patch: Patch) -> None:
    """first-advances"""
    make_room = Scheduler._make_room

    def unfair(self: Scheduler, plan: Any, request: Any, end: int) -> bool:
        return request is not self._running.first and make_room(self, plan, request, end)

    patch.setattr(Scheduler, "_make_room", unfair)


def copy_on_write_does_not_copy(patch: Patch) -> None:
    """reads-what-was-written"""
    patch.setattr(Scheduler, "_copy_partial_block", lambda self, plan, parent, child, start: None)


def a_row_is_given_to_two(patch: Patch) -> None:
    """rows-are-unique"""
    vacate = Scheduler._vacate

    def doubling(self: Scheduler, request: Any) -> None:
        vacate(self, request)
        self._free_rows.append(request.row)

    patch.setattr(Scheduler, "_vacate", doubling)


def a_step_takes_one_token_too_many(patch: Patch) -> None:
    """budget-is-kept"""
    chunk = Scheduler._chunk

    def generous(self: Scheduler, request: Request, remaining: int, budget: int) -> int:
        return min(remaining, chunk(self, request, remaining, budget) + 1)

    patch.setattr(Scheduler, "_chunk", generous)


def failed_loads_count_as_loaded(patch: Patch) -> None:
    """hashes-name-contents, reads-what-was-written"""
    finish = Transfers.finish_loading
    patch.setattr(Transfers, "finish_loading", lambda self, name, *, loaded: finish(self, name, loaded=True))


def aborted_loads_free_their_blocks_at_once(patch: Patch) -> None:
    """one-writer, owners-are-counted"""
    abort = Scheduler.abort

    def hasty(self: Scheduler, request_id: str) -> bool:
        request = self._transfers._loading.get(request_id)
        if request is not None:
            self._cache.release(request.blocks)
        return abort(self, request_id)

    patch.setattr(Scheduler, "abort", hasty)


def ended_requests_get_what_was_in_flight(patch: Patch) -> None:
    """ended-is-silent"""
    take = InFlight.take

    def reviving(self: InFlight, plan: Any, output: Any) -> Any:
        sampled = take(self, plan, output)
        for request in sampled.values():
            if request.status is Status.FINISHED:
                request.status = Status.WAITING
        return sampled

    patch.setattr(InFlight, "take", reviving)


def the_queue_is_counted_up_only(patch: Patch) -> None:
    """nothing-is-left, ends-with-its-reason"""
    patch.setattr(Scheduler, "_leave_queue", lambda self, request: None)


def min_tokens_are_ignored(patch: Patch) -> None:
    """ends-with-its-reason"""
    finish_reason = Request.finish_reason

    def early(self: Request, token_id: int) -> Any:
        self.min_length = 0
        return finish_reason(self, token_id)

    patch.setattr(Request, "finish_reason", early)


# --- engine, client, supervisor ------------------------------------------------------------------------------


def the_engine_ignores_aborts(patch: Patch) -> None:
    """ended-is-silent"""
    patch.setattr(Engine, "abort", lambda self, request_id: None)


def a_new_engine_repeats_a_token(patch: Patch) -> None:
    """tokens-are-the-references"""
    resumed = _Stream.resumed

    def repeating(self: _Stream) -> Any:
        request = resumed(self)
        return msgspec.structs.replace(request, output_token_ids=request.output_token_ids[:-1])

    patch.setattr(_Stream, "resumed", repeating)


def a_new_engine_skips_a_token(patch: Patch) -> None:
    """admissions-are-whole, tokens-are-the-references, ends-with-its-reason"""
    resumed = _Stream.resumed

    def skipping(self: _Stream) -> Any:
        request = resumed(self)
        known = request.output_token_ids
        return msgspec.structs.replace(request, output_token_ids=[*known, *known[-1:]])

    patch.setattr(_Stream, "resumed", skipping)


def the_client_keeps_dead_streams(patch: Patch) -> None:
    """nothing-is-left"""

    def keeping(self: RemoteEngineClient, stream: _Stream) -> None:
        if not stream.finished:
            stream.finished = True
            self._tell_abort(stream)

    patch.setattr(RemoteEngineClient, "_close_stream", keeping)


def the_client_never_gives_a_request_up(patch: Patch) -> None:
    """ends-in-time"""
    patch.setattr(client, "MAX_DEATHS", 10**9)
    patch.setattr(client, "MAX_SLOW_DEATHS", 10**9)


def the_client_forgets_to_submit_again(patch: Patch) -> None:
    """ends-in-time"""
    take = RemoteEngineClient._take_engine

    def forgetting(self: RemoteEngineClient, change: Any, endpoint: str) -> None:
        streams, self._streams = self._streams, {}
        take(self, change, endpoint)
        self._streams = streams

    patch.setattr(RemoteEngineClient, "_take_engine", forgetting)


def the_client_takes_the_dead_for_living(patch: Patch) -> None:
    """ends-in-time"""
    lose = RemoteEngineClient._lose_engine

    def faithful(self: RemoteEngineClient) -> None:
        lose(self)
        for stream in self._streams.values():
            stream.submitted = True

    patch.setattr(RemoteEngineClient, "_lose_engine", faithful)


def the_loop_keeps_owners(patch: Patch) -> None:
    """nothing-is-left"""

    def deliver(self: EngineLoop, deltas: list[Any]) -> None:
        for delta in deltas:
            if (owner := self._owners.get(delta.request_id)) is not None:
                self._send(owner, client.Deltas([delta]))

    patch.setattr(EngineLoop, "_deliver", deliver)


def requests_of_dead_frontends_run_on(patch: Patch) -> None:
    """ended-is-silent"""
    patch.setattr(EngineLoop, "_forget", lambda self, frontend: None)


def the_supervisor_gives_up_too_early(patch: Patch) -> None:
    """ends-with-its-reason"""
    died = RestartPolicy.died

    def hasty(self: RestartPolicy) -> float | None:
        delay = died(self)
        return None if self._unready_deaths > 1 else delay

    patch.setattr(RestartPolicy, "died", hasty)


MUTANTS = [
    member
    for _, member in inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    if list(inspect.signature(member).parameters) == ["patch"]
]


@pytest.mark.slow
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda function: function.__name__)
def test_a_bug_is_found_by_its_invariant(mutate: FunctionType, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    violation = first_violation()
    assert violation is not None, f"{SEEDS} seeds do not find it"
    assert mutate.__doc__ is not None and violation.invariant in mutate.__doc__.split(", "), violation
