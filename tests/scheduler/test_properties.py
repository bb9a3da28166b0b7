"""Random histories of the scheduler against a model of the KV cache.

`Model` plays the executor: it applies plans in order to a tiny KV cache in which the value at a position names the
whole sequence up to it, as real KV depends on it. Each computed token checks that every position it may read holds
what its own sequence wrote there, so a stale, wrongly shared or uncopied block is seen at once. Tokens are a
function of the sequence, so each request's whole answer is known beforehand.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.cache import CacheManager, KVIndex
from core.config import SchedulerConfig
from core.errors import InvalidRequest, QueueFull
from core.scheduler import Scheduler
from core.types import NULL_BLOCK, EngineRequest, KVGroupSpec, KVOp, SamplingParams, StepOutput, StepPlan

EOS = 0
MAX_MODEL_LEN = 24
FULL = KVGroupSpec(layers=(0,), num_kv_heads=1, head_dim=8)
NARROW = KVGroupSpec(layers=(1,), num_kv_heads=1, head_dim=8, window=3)
WIDE = KVGroupSpec(layers=(2,), num_kv_heads=1, head_dim=8, window=7)


def next_token(salt: str, tokens: Sequence[int], choice: int) -> int:
    return zlib.crc32(repr((salt, list(tokens), choice)).encode()) % 19


def answer(request: EngineRequest) -> tuple[list[int], str]:
    """What the model says to `request` from its very start, and why it stops."""
    params, tokens = request.params, list(request.prompt_token_ids)
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
    while True:
        tokens.append(next_token(request.cache_salt, tokens, request.choice_index))
        output = tokens[len(request.prompt_token_ids) :]
        if tokens[-1] in stops and len(output) >= params.min_tokens:
            return output, "stop"
        if len(output) == params.max_tokens or len(tokens) == MAX_MODEL_LEN:
            return output, "length"


class Row:
    """The runner's state of one running request."""

    def __init__(self, tokens: list[int], computed: int, tables: list[list[int]], choice: int, salt: str) -> None:
        self.tokens, self.computed, self.tables, self.choice, self.salt = tokens, computed, tables, choice, salt


class Model:
    """An executor with a KV cache: `kv[group][block][offset]` is (salt, sequence up to and with that position)."""

    def __init__(self, groups: Sequence[KVGroupSpec], block_size: int) -> None:
        self.groups, self.block_size = groups, block_size
        self.kv: list[dict[int, dict[int, object]]] = [{} for _ in groups]
        self.rows: dict[int, Row] = {}
        self.loads: dict[str, list[KVOp]] = {}
        self.saved: dict[tuple[int, bytes], dict[int, object]] = {}

    def execute(self, plan: StepPlan, salts: dict[str, str]) -> StepOutput:
        for row in plan.released:
            del self.rows[row]
        for new in plan.admitted:
            assert new.row not in self.rows
            tables = [list(table) for table in new.block_ids]
            tokens, salt = list(new.token_ids), salts[new.request_id]
            self.rows[new.row] = Row(tokens, new.num_computed_tokens, tables, new.choice_index, salt)
        for row, group, index, block in plan.blocks:
            assert index == len(self.rows[row].tables[group])
            self.rows[row].tables[group].append(block)
        for op in plan.kv_ops:
            self.move(op)
        output = StepOutput(plan.step, [], [])
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            self.forward(self.rows[row], count)
            state = self.rows[row]
            if state.computed == len(state.tokens):
                state.tokens.append(next_token(state.salt, state.tokens, state.choice))
                output.rows.append(row)
                output.token_ids.append(state.tokens[-1])
        return output

    def move(self, op: KVOp) -> None:
        kv = self.kv[op.group]
        if op.kind == "copy":
            kv[op.dst] = dict(kv[op.src])
        elif op.kind == "save":
            assert len(kv[op.src]) == self.block_size
            self.saved[op.group, op.key] = dict(kv[op.src])
        else:
            kv[op.dst] = {}  # whoever reads it before it is loaded fails
            self.loads.setdefault(op.request_id, []).append(op)

    def load(self, request_id: str, succeed: bool) -> None:
        for op in self.loads.pop(request_id):
            assert not self.kv[op.group][op.dst], "somebody wrote into a block that is being loaded"
            if succeed:
                self.kv[op.group][op.dst] = dict(self.saved[op.group, op.key])

    def forward(self, row: Row, count: int) -> None:
        size = self.block_size
        for position in range(row.computed, row.computed + count):
            for group, kv, table in zip(self.groups, self.kv, row.tables, strict=True):
                first = 0 if group.window is None else max(0, position - group.window + 1)
                for read in range(first, position):
                    held = kv[table[read // size]].get(read % size)
                    assert held == (row.salt, tuple(row.tokens[: read + 1])), (position, read, held)
                assert table[position // size] != NULL_BLOCK
                block = kv.setdefault(table[position // size], {})
                for stale in range(position % size, size):
                    block.pop(stale, None)
                block[position % size] = (row.salt, tuple(row.tokens[: position + 1]))
        row.computed += count
        assert row.computed <= len(row.tokens)


class Shelf(KVIndex):
    """A connector that keeps what it is given."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.asked: set[bytes] = set()

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        groups = range(len(self.model.groups))
        count = 0
        for key in hashes[num_local:]:
            if not all((group, key) in self.model.saved for group in groups):
                break
            count += 1
        return count

    def wants(self, block_hash: bytes) -> bool:
        new = block_hash not in self.asked
        self.asked.add(block_hash)
        return new


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        groups=st.sampled_from([[FULL], [FULL], [WIDE], [FULL, NARROW], [NARROW, FULL, WIDE]]),
        block_size=st.integers(1, 4),
        spare_blocks=st.integers(0, 6),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 16),
        chunked=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.sampled_from(["off", "on", "connector"]),
        queue_limit=st.sampled_from([0, 0, 3]),
        depth=st.integers(1, 3),
    )
    def start(
        self, *, groups, block_size, spare_blocks, max_num_seqs, budget, chunked, policy, caching, queue_limit, depth
    ):
        self.now = 0.0
        self.depth = depth
        self.model = Model(groups, block_size)
        num_blocks = 1 + -(-MAX_MODEL_LEN // block_size) + spare_blocks
        self.cache = CacheManager(
            groups, num_blocks, block_size, enable_prefix_caching=caching != "off", fingerprint="model"
        )
        self.config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=MAX_MODEL_LEN,
            policy=policy,
            enable_chunked_prefill=chunked,
            max_queued_requests=queue_limit,
        )
        self.scheduler = Scheduler(
            self.config,
            self.cache,
            eos_token_ids=[EOS],
            connector=Shelf(self.model) if caching == "connector" else None,
            clock=lambda: self.now,
        )
        self.requests: dict[str, EngineRequest] = {}
        self.outputs: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.in_flight: list[tuple[StepPlan, StepOutput]] = []

    # --- events ----------------------------------------------------------------------------------------------

    def add(self, request: EngineRequest) -> bool:
        try:
            self.scheduler.add(request)
        except QueueFull:
            assert self.config.max_queued_requests
            return False
        except InvalidRequest as error:
            # The pool holds MAX_MODEL_LEN tokens, so only an unchunked prompt or a window's chunk can be too much.
            assert error.param in ("prompt", "max_tokens")
            assert error.param == "max_tokens" or not self.config.enable_chunked_prefill
            return False
        self.requests[request.request_id] = request
        self.outputs[request.request_id] = list(request.output_token_ids)
        return True

    @rule(
        prompt=st.one_of(
            st.lists(st.just(1), min_size=1, max_size=14),
            st.lists(st.integers(1, 2), min_size=1, max_size=MAX_MODEL_LEN - 1),
        ),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        max_tokens=st.integers(1, MAX_MODEL_LEN),
        min_tokens=st.integers(0, 3),
        stops=st.sampled_from([(), (3,), (EOS,)]),
        ignore_eos=st.booleans(),
        salt=st.sampled_from(["", "", "pepper"]),
        priority=st.integers(0, 2),
        patience=st.sampled_from([None, None, 3.0]),
        resume=st.sampled_from([0, 0, 2]),
    )
    def arrive(self, *, prompt, n, max_tokens, min_tokens, stops, ignore_eos, salt, priority, patience, resume):
        first = f"r{len(self.requests)}"
        for choice in range(n):
            request = EngineRequest(
                request_id=f"{first}.{choice}",
                prompt_token_ids=prompt,
                params=SamplingParams(
                    n=n,
                    temperature=0.0,
                    max_tokens=max_tokens,
                    min_tokens=min(min_tokens, max_tokens),
                    stop_token_ids=stops,
                    ignore_eos=ignore_eos,
                ),
                choice_index=choice,
                parent_id=f"{first}.0" if choice else None,
                priority=priority,
                deadline=None if patience is None else self.now + patience,
                cache_salt=salt,
            )
            done = answer(request)[0][:resume]
            if len(done) < len(answer(request)[0]):
                request.output_token_ids.extend(done)
            if not self.add(request):
                return

    @rule()
    def schedule(self):
        if len(self.in_flight) == self.depth:
            return
        scheduler = self.scheduler
        running = list(scheduler._running.requests)
        waiting = list(scheduler._waiting.requests)
        plan = scheduler.schedule()
        if plan is None:
            return
        assert sum(plan.num_tokens) <= self.config.max_num_batched_tokens
        assert all(count > 0 for count in plan.num_tokens)
        assert len(set(plan.rows)) == len(plan.rows)
        assert all(0 <= row < self.config.max_num_seqs for row in plan.rows)
        now_running = scheduler._running.requests
        preempted = [request for request in running if request not in now_running]
        admitted = [request for request in waiting if request in now_running]
        still_waiting = [request for request in waiting if request in scheduler._waiting.requests]
        assert not (preempted and admitted)
        assert all(gone.key > kept.key for gone in preempted for kept in now_running)
        assert all(came.key < left.key for came in admitted for left in still_waiting)
        salts = {request_id: request.cache_salt for request_id, request in self.requests.items()}
        self.in_flight.append((plan, self.model.execute(plan, salts)))

    @rule(data=st.data())
    def update(self, data):
        if self.in_flight:
            loads = list(self.model.loads)
            done = data.draw(st.lists(st.sampled_from(loads), unique=True)) if loads else []
            self.finish_step({name: data.draw(st.booleans()) for name in done})

    @rule(turns=st.integers(2, 8), lag=st.integers(1, 3), loads=st.sampled_from([None, True, False]))
    def run(self, turns, lag, loads):
        for _ in range(turns):
            self.schedule()
            while len(self.in_flight) >= min(lag, self.depth):
                self.finish_step({} if loads is None else dict.fromkeys(self.model.loads, loads))

    def finish_step(self, loads: dict[str, bool]) -> None:
        plan, output = self.in_flight.pop(0)
        for request_id, succeed in loads.items():
            self.model.load(request_id, succeed)
            (output.kv_loaded if succeed else output.kv_failed).append(request_id)
        for delta in self.scheduler.update(plan, output):
            self.take(delta)

    def take(self, delta):
        request_id = delta.request_id
        assert request_id not in self.ended
        self.outputs[request_id] += delta.token_ids
        tokens, reason = answer(self.requests[request_id])
        assert self.outputs[request_id] == tokens[: len(self.outputs[request_id])]
        assert 0 <= delta.num_cached_tokens <= len(self.requests[request_id].prompt_token_ids)
        if delta.finish_reason is not None:
            self.ended[request_id] = delta.finish_reason
            if delta.finish_reason != "deadline":
                assert (self.outputs[request_id], delta.finish_reason) == (tokens, reason)

    @precondition(lambda self: len(self.ended) < len(self.requests))
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from([name for name in self.requests if name not in self.ended]))
        assert self.scheduler.abort(request_id)
        assert not self.scheduler.abort(request_id)
        self.ended[request_id] = "abort"

    @rule(seconds=st.sampled_from([1.0, 2.0]))
    def let_time_pass(self, seconds):
        self.now += seconds
        for delta in self.scheduler.expire():
            assert self.requests[delta.request_id].deadline <= self.now
            self.take(delta)
        assert all(moment > self.now for moment, name in self.scheduler._deadlines if name in self.scheduler._requests)

    # --- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def owners_are_counted(self):
        holders = {id(r): r for r in self.scheduler._requests.values()}
        holders |= {id(r): r for r in self.scheduler._transfers._loading.values()}
        for group, pool in enumerate(self.cache.pools):
            owners = Counter(block for r in holders.values() for block in r.blocks.tables[group])
            del owners[NULL_BLOCK]
            assert {b: pool.num_owners(b) for b in range(pool.num_blocks) if pool.num_owners(b)} == dict(owners)
            assert sorted(pool._free) == [b for b in range(1, pool.num_blocks) if b not in owners]

    @invariant()
    def rows_are_counted(self):
        rows = [request.row for request in self.scheduler._running.requests]
        assert sorted(rows + self.scheduler._free_rows) == list(range(self.config.max_num_seqs))

    @invariant()
    def nothing_is_computed_beyond_the_last_token(self):
        for request in self.scheduler._running.requests:
            assert request.num_computed < request.num_tokens <= request.max_length

    @invariant()
    def queue_limit_holds(self):
        limit = self.config.max_queued_requests
        assert not limit or self.scheduler._num_queued <= limit

    def teardown(self):
        """Whatever has happened, everything ends within a bounded number of turns, and nothing is left owned."""
        if not hasattr(self, "scheduler"):
            return
        unfinished = [request for name, request in self.requests.items() if name not in self.ended]
        for _ in range(100 + 2 * MAX_MODEL_LEN * MAX_MODEL_LEN * len(unfinished)):
            self.schedule()
            if self.in_flight:
                self.finish_step(dict.fromkeys(self.model.loads, True))
            elif not self.scheduler.has_unfinished():
                break
        assert not self.scheduler.has_unfinished()
        assert self.ended.keys() == self.requests.keys()
        self.owners_are_counted()
        assert all(pool.num_free == pool.capacity for pool in self.cache.pools)
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.waiting_for_kv, stats.kv_usage) == (0, 0, 0, 0.0)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
