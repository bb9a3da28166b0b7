"""What holds of a scheduler and its cache between any two steps."""

from __future__ import annotations

from collections import Counter

from core.scheduler import Scheduler
from core.scheduler.request import Request
from core.types import NULL_BLOCK, StepPlan
from harness.kv import KVModel
from harness.trace import Violation


def check_plan(scheduler: Scheduler, plan: StepPlan, *, budget: int, max_num_seqs: int, loading: bool) -> None:
    """A plan that has just been made keeps the limits, and the most important running request is in it.

    While a connector fills blocks for a waiting request, even the most important one may have to wait for them.
    """
    if sum(plan.num_tokens) > budget or min(plan.num_tokens, default=1) < 1:
        raise Violation("budget-is-kept", f"{plan.num_tokens} tokens of {budget}")
    if len(set(plan.rows)) != len(plan.rows) or not all(0 <= row < max_num_seqs for row in plan.rows):
        raise Violation("rows-are-unique", f"rows {plan.rows} of {max_num_seqs}")
    running = scheduler._running.requests
    if running and not loading and not _is_served(running[0], plan):
        raise Violation("first-advances", f"{running[0].request_id} is the most important one and not in the plan")


def _is_served(request: Request, plan: StepPlan) -> bool:
    return request.row in plan.rows or request.num_tokens >= request.max_length  # its last token is in flight


def check_blocks(scheduler: Scheduler, model: KVModel) -> None:
    """Every block is free or owned as often as tables have it, and what can be found by hash holds what the hash says."""
    holders = [*scheduler._requests.values()]
    holders += [request for name, request in scheduler._transfers._loading.items() if name not in scheduler._requests]
    for group, pool in enumerate(scheduler._cache.pools):
        owners = Counter(block for request in holders for block in request.blocks.tables[group])
        del owners[NULL_BLOCK]
        counted = {block: count for block, count in enumerate(pool._num_owners) if count}
        if counted != owners:
            raise Violation("owners-are-counted", f"group {group}: tables have {dict(owners)}, the pool says {counted}")
        if len(owners) + pool.num_free != pool.capacity or not owners.keys().isdisjoint(pool._free):
            raise Violation("free-and-used-is-all", f"{len(owners)} used and {pool.num_free} free of {pool.capacity}")
        contents = model.kv[group]
        for name, block in pool._by_hash.items():
            if not model.sequences.holds(contents[block], name):
                raise Violation("hashes-name-contents", f"group {group}: block {block} holds {contents[block]}")


def check_rows(scheduler: Scheduler, max_num_seqs: int) -> None:
    """Every row is free or one running request's."""
    rows = [request.row for request in scheduler._running.requests]
    if sorted(rows + scheduler._free_rows) != list(range(max_num_seqs)):
        raise Violation("rows-are-unique", f"running have {rows}, free are {scheduler._free_rows}")


def check_nothing_left(scheduler: Scheduler) -> None:
    """When every request has ended: no block is owned, no row taken, no map has an entry."""
    scheduler.expire()
    left = {
        "requests": list(scheduler._requests),
        "waiting": [request.request_id for request in scheduler._waiting.requests],
        "running": [request.request_id for request in scheduler._running.requests],
        "in flight": scheduler._in_flight.steps,
        "prefilled": scheduler._prefilled,
        "deadlines": scheduler._deadlines,
        "queued": scheduler._num_queued or (),
        "loading": list(scheduler._transfers._loading),
        "saves": scheduler._transfers._saves,
    }
    left["owned blocks"] = [
        pool.capacity - pool.num_free for pool in scheduler._cache.pools if pool.num_free < pool.capacity
    ]
    if any(left.values()):
        raise Violation("nothing-is-left", f"{ {name: what for name, what in left.items() if what} }")
