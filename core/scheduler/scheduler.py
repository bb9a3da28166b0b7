"""Continuous batching: which request computes how many tokens in the next step.

Requests are totally ordered by (priority, arrival, order of `add`); under fcfs all priorities are equal. Each turn
goes over the running requests in that order, then admits from the waiting queue in that order, until the token
budget, the rows or the blocks are used up. A request that needs a block takes it from the *least* important running
one, never from a more important one: that one is preempted, gives everything back and is computed again later. So the
most important request always advances, and nothing can preempt in a circle.

Steps may be planned ahead: a token that a step in flight will sample is counted in `Request.num_tokens` before its value
is known, and the runner appends it to its own state. Steps execute in the order of their plans, hence blocks and rows
may be reused by the next plan at once, and a block may be found by others from the moment its computation is planned.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Sequence

from core.cache import CacheManager, KVIndex, PrefixHit
from core.config import SchedulerConfig
from core.errors import ConfigError, InvalidRequest, QueueFull
from core.scheduler.in_flight import InFlight
from core.scheduler.preparing import IsPrepared, Preparing
from core.scheduler.queue import RequestQueue
from core.scheduler.request import Request, Status, check_limits
from core.scheduler.stats import SchedulerStats
from core.scheduler.transfers import Transfers
from core.types import EngineRequest, KVOp, RequestDelta, StepOutput, StepPlan


class Scheduler:
    """Turns requests into step plans, and step outputs into what each request gets.

    `clock` gives seconds on the scale of `EngineRequest.deadline`. Raises ConfigError for a connector without
    prefix caching, as what it brings is found by hash.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheManager,
        *,
        eos_token_ids: Sequence[int],
        connector: KVIndex | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_prepared: IsPrepared = lambda params: True,
    ) -> None:
        if connector is not None and not cache.enable_prefix_caching:
            raise ConfigError("--enable-prefix-caching", "a KV connector needs it; switch it on or drop the connector")
        self._config = config
        self._cache = cache
        self._transfers = Transfers(cache, connector)
        self._clock = clock
        self.preparing = Preparing(is_prepared)  # which `schedule` looks at
        self._eos_token_ids = frozenset(eos_token_ids)
        self._requests: dict[str, Request] = {}  # unfinished
        self._waiting = RequestQueue()
        self._running = RequestQueue()
        self._in_flight = InFlight()
        self._deadlines: list[tuple[float, str]] = []  # a heap; may name requests that have ended
        self._free_rows = list(range(config.max_num_seqs - 1, -1, -1))
        self._released: list[int] = []
        self._prefilled: list[Request] = []  # whose prompts the plan being made completes
        self._step = 0
        self._added = itertools.count()
        self._num_queued = 0
        self._prefix_queries = 0
        self._prefix_hits = 0
        self._preemptions = 0

    # --- requests come and go --------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises InvalidRequest for one that can never run, and QueueFull. The limit holds for what a client newly
        asks for: choices 1…n-1 follow their choice 0, and a request that goes on after a restart was let in before.
        """
        priority = request.priority if self._config.policy == "priority" else 0
        key = (priority, request.arrival_time, next(self._added))
        tables = self._cache.new_tables(request.cache_salt)
        state = Request(request, tables, key, self._eos_token_ids, self._config.max_model_len)
        if state.request_id in self._requests or self._transfers.is_loading(state.request_id):
            raise InvalidRequest(f"request id {state.request_id!r} is in use; choose another", param="request_id")
        check_limits(state, self._config, self._cache)
        limit = self._config.max_queued_requests
        if state.is_queued and 0 < limit <= self._num_queued:
            raise QueueFull(f"{self._num_queued} requests are waiting already (--max-queued-requests {limit})")
        self._num_queued += state.is_queued
        if state.deadline is not None:
            heapq.heappush(self._deadlines, (state.deadline, state.request_id))
        if not self.preparing.hold(state, request.parent_id):
            self._enqueue(state, request.parent_id)
        self._requests[state.request_id] = state

    def abort(self, request_id: str) -> bool:
        """End a request without a delta, and free its blocks. False if there is no such request (any more).

        What steps in flight sample for it is dropped. Blocks that a connector is filling are kept until it is done.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._end(request)
        return True

    def expire(self) -> list[RequestDelta]:
        """End the requests whose deadline has passed, running or waiting; forget deadlines of those that have ended."""
        now = self._clock()
        deltas = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self._requests):
            deadline, request_id = heapq.heappop(self._deadlines)
            request = self._requests.get(request_id)
            if request is not None and request.deadline == deadline:
                self._end(request)
                deltas.append(RequestDelta(request_id, [], "deadline", num_cached_tokens=request.num_cached))
        return deltas

    def has_unfinished(self) -> bool:
        """Whether there are requests, or KV blocks to be moved, for which `schedule` may have a plan."""
        return bool(self._requests or self._transfers.is_pending)

    def stats(self) -> SchedulerStats:
        """Counts for metrics and logs."""
        return SchedulerStats(
            running=len(self._running),
            waiting=len(self._requests) - len(self._running),
            waiting_for_kv=self._transfers.num_waiting,
            kv_usage=self._cache.usage,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
            external_queries=self._transfers.num_queried,
            external_hits=self._transfers.num_brought,
            preemptions=self._preemptions,
        )

    def reset_prefix_cache(self) -> bool:
        """Let no block be found by what it holds. False, and nothing changed, while any is owned."""
        return self._cache.forget()

    # --- one turn --------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """The next step, or None if nothing can run before an update, or at all.

        A plan may hold KV movements only. It is empty while connector loads are all there is to wait for: the output
        of that step is where they are reported.
        """
        for request, parent_id in self.preparing.take():
            self._enqueue(request, parent_id)
        plan = StepPlan(self._step, self._released, [], [], [], [], self._transfers.take_saves())
        sampled: dict[int, Request] = {}
        budget = self._schedule_running(plan, sampled)
        self._schedule_waiting(plan, sampled, budget)
        is_poll = self._transfers.num_loading and not self._in_flight
        if not (plan.rows or plan.kv_ops or is_poll):
            return None
        self._step += 1
        self._released = []
        self._in_flight.add(plan.step, sampled)
        for request in self._prefilled:  # what this plan writes, the next one may copy
            request.forkable = True
            self._let_children_go(request)
        self._prefilled.clear()
        return plan

    def update(self, plan: StepPlan, output: StepOutput) -> list[RequestDelta]:
        """Take in what the oldest step in flight, `plan`, gave. Returns a delta for each request that got a token.

        Raises PlatformError for an output that does not answer the plan.
        """
        sampled = self._in_flight.take(plan, output)
        deltas = []
        for row, token_id in zip(output.rows, output.token_ids, strict=True):
            request = sampled[row]
            if request.status is Status.FINISHED:
                continue
            if row in output.failed:
                self._end(request)
                deltas.append(RequestDelta(request.request_id, [], "error", error=output.failed[row]))
            elif request.pooling is not None:
                self._end(request)
                deltas.append(request.pooled_delta(output.pooled.get(row)))
            else:
                deltas.append(self._append(request, token_id, row, output))
        for request_id in output.kv_loaded:
            self._finish_loading(request_id, loaded=True)
        for request_id in output.kv_failed:
            self._finish_loading(request_id, loaded=False)
        return deltas

    # --- planning --------------------------------------------------------------------------------------------

    def _schedule_running(self, plan: StepPlan, sampled: dict[int, Request]) -> int:
        """Plan the running requests. Returns what is left of the budget: nothing if the blocks ran out, as then
        nobody may come in."""
        budget = self._config.max_num_batched_tokens
        preemptions = self._preemptions
        for request in self._running.requests:  # preemption shortens it from the end, behind the current one
            if budget == 0:
                break
            if request.num_tokens >= request.max_length:
                continue  # its last token is in flight
            count = self._chunk(request, request.num_tokens - request.num_computed, budget)
            end = request.num_computed + count
            if end > request.blocks.capacity and not self._make_room(plan, request, end):
                return 0
            if count:
                self._advance(plan, sampled, request, count)
                budget -= count
        return budget if self._preemptions == preemptions else 0

    def _schedule_waiting(self, plan: StepPlan, sampled: dict[int, Request], budget: int) -> None:
        while budget and self._free_rows and len(self._waiting):
            request = self._waiting.first
            if self.preparing.hold_again(request):
                self._waiting.remove(request)
                continue
            hit, start = self._find_prefix(request)
            if self._transfers.start_loading(plan.kv_ops, request, hit):
                self._waiting.remove(request)
                request.status = Status.WAITING_FOR_KV
                continue
            count = self._chunk(request, request.num_tokens - start, budget)
            if not count or not self._cache.admit(request.blocks, hit, start + count, request.num_tokens):
                return  # those behind wait too: otherwise small requests could keep a large one out for ever
            self._admit(plan, request, hit, start)
            self._advance(plan, sampled, request, count)
            budget -= count

    def _chunk(self, request: Request, num_remaining: int, budget: int) -> int:
        """How many of the remaining tokens to compute now. Without chunked prefill: all or none, except of a preempted
        request that has outgrown what a whole step can take, and of a prompt whose tokens are a sequence each."""
        if request.wants_prompt_logprobs:
            return min(num_remaining, budget, self._config.max_num_seqs)
        if num_remaining <= budget:
            return num_remaining
        if self._config.enable_chunked_prefill or num_remaining > self._config.max_num_batched_tokens:
            return budget
        return 0

    def _advance(self, plan: StepPlan, sampled: dict[int, Request], request: Request, count: int) -> None:
        end = request.num_computed + count
        request.num_computed = end
        plan.rows.append(request.row)
        plan.num_tokens.append(count)
        if end == request.num_tokens:
            request.num_tokens = end + 1
            sampled[request.row] = request
        if end >= request.blocks.next_full:
            self._register(request)
        if not request.forkable and end >= request.num_prompt:
            self._prefilled.append(request)

    def _make_room(self, plan: StepPlan, request: Request, end: int) -> bool:
        """Blocks for `request` up to `end`, at the cost of less important ones. False if there is none left of these:
        then it keeps what it has and waits."""
        first = len(request.blocks.tables[0])
        while not self._cache.grow(request.blocks, request.num_computed, end):
            victim = self._running.last
            if victim is request:
                return False
            self._preempt(victim)
        for group, table in enumerate(request.blocks.tables):
            plan.blocks.extend((request.row, group, index, table[index]) for index in range(first, len(table)))
        return True

    def _preempt(self, request: Request) -> None:
        self._preemptions += 1
        self._running.remove(request)
        self._vacate(request)
        self._let_children_go(request)
        if request.num_tokens > len(request.token_ids):
            request.status = Status.PREEMPTED
        else:
            self._wait(request)

    def _find_prefix(self, request: Request) -> tuple[PrefixHit, int]:
        """The blocks to start with, and the first position to compute."""
        parent = request.parent
        if parent is not None and parent.forkable:
            start = request.num_prompt - 1
            shared = self._cache.share_prefix(parent.blocks, start)
            if shared is not None:
                return shared, start
        request.parent = None
        if request.wants_prompt_logprobs:
            return self._cache.no_hit(), 0
        hit = self._cache.match(request.blocks, request.token_ids)
        return hit, hit.num_blocks * self._cache.block_size

    def _admit(self, plan: StepPlan, request: Request, hit: PrefixHit, start: int) -> None:
        self._waiting.remove(request)
        self._running.add(request)
        request.status = Status.RUNNING
        request.row = self._free_rows.pop()
        request.num_computed = start
        if request.parent is not None:
            self._copy_partial_block(plan, request.parent, request, start)
            request.parent = None
        if not request.was_admitted:
            request.was_admitted = True
            self._leave_queue(request)
            request.num_cached = min(start, request.num_prompt)
            request.queue_seconds = self._clock() - request.key[1]
            self._prefix_queries += request.num_tokens
            self._prefix_hits += start
        plan.admitted.append(request.admission())

    def _copy_partial_block(self, plan: StepPlan, parent: Request, child: Request, start: int) -> None:
        """Copy on write: `child` computes position `start`, which is in a block of `parent`'s. It does so in the very
        plan that admits it, so the block is copied at once and never shared."""
        child.blocks.hashes = parent.blocks.hashes[: child.num_prompt // self._cache.block_size]
        index, offset = divmod(start, self._cache.block_size)
        if offset:
            for group, (source, table) in enumerate(zip(parent.blocks.tables, child.blocks.tables, strict=True)):
                plan.kv_ops.append(KVOp("copy", group, source[index], table[index], request_id=child.request_id))

    def _register(self, request: Request) -> None:
        """Let others find the full blocks whose tokens are known, and offer them to the connector."""
        num_known = min(request.num_computed, len(request.token_ids))
        new = self._cache.register(request.blocks, request.token_ids, num_known)
        self._transfers.offer(request, new)

    # --- taking in results -----------------------------------------------------------------------------------

    def _append(self, request: Request, token_id: int, row: int, output: StepOutput) -> RequestDelta:
        token_ids = [token_id, *output.forced.get(row, ())]
        reason = request.extend(token_ids)
        request.wants_prompt_logprobs = False
        if request.num_computed >= request.blocks.next_full:
            self._register(request)
        if reason is not None:
            self._end(request)
        elif request.status is Status.PREEMPTED and request.num_tokens == len(request.token_ids):
            self._wait(request)
        return request.told(token_ids, reason, row, output)

    # --- states ----------------------------------------------------------------------------------------------

    def _enqueue(self, request: Request, parent_id: str | None) -> None:
        parent = None if parent_id is None else self._requests.get(parent_id)
        if parent is not None and parent.has_prompt_of(request):
            request.parent = parent
            if not parent.forkable:
                request.status = Status.WAITING_FOR_PARENT
                parent.children.append(request)
                return
        self._wait(request)

    def _wait(self, request: Request) -> None:
        request.status = Status.WAITING
        self._waiting.add(request)

    def _finish_loading(self, request_id: str, *, loaded: bool) -> None:
        request = self._transfers.finish_loading(request_id, loaded=loaded)
        if request.status is Status.WAITING_FOR_KV:
            self._wait(request)

    def _leave_queue(self, request: Request) -> None:
        self._num_queued -= request.is_queued
        request.is_queued = False

    def _let_children_go(self, request: Request) -> None:
        """Let those run that waited for its prompt: they copy it if it is there, or are on their own."""
        for child in request.children:
            self._wait(child)
        request.children.clear()

    def _vacate(self, request: Request) -> None:
        """Give row and blocks back."""
        self._released.append(request.row)
        self._free_rows.append(request.row)
        self._cache.release(request.blocks)
        request.num_computed = 0
        request.forkable = False

    def _end(self, request: Request) -> None:
        status, request.status = request.status, Status.FINISHED
        del self._requests[request.request_id]
        self._leave_queue(request)
        if status is Status.RUNNING:
            self._running.remove(request)
            self._vacate(request)
        elif status is Status.WAITING:
            self._waiting.remove(request)
        elif status is Status.WAITING_FOR_PARENT and request.parent is not None:
            request.parent.children.remove(request)
        self._let_children_go(request)
