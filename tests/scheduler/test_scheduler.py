"""The scheduler's decisions, one at a time. Random histories are in test_properties.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from core.cache import CacheManager, KVIndex
from core.config import SchedulerConfig
from core.errors import ConfigError, InvalidRequest, PlatformError, QueueFull
from core.scheduler import Scheduler
from core.types import (
    EngineRequest,
    KVGroupSpec,
    KVOp,
    RequestDelta,
    SamplingParams,
    StepOutput,
    StepPlan,
    TokenLogprobs,
)

EOS = 0
SIZE = 4
FULL = KVGroupSpec(layers=(0,), num_kv_heads=1, head_dim=8)
SLIDING = KVGroupSpec(layers=(1,), num_kv_heads=1, head_dim=8, window=5)


class Engine:
    """A scheduler, its cache, and an executor that knows only which rows sample."""

    def __init__(
        self,
        *,
        num_blocks: int = 33,
        groups: Sequence[KVGroupSpec] = (FULL,),
        caching: bool = True,
        connector: KVIndex | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        **config: object,
    ) -> None:
        self.cache = CacheManager(groups, num_blocks, SIZE, enable_prefix_caching=caching, fingerprint="model")
        defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 64}
        self.scheduler = Scheduler(
            SchedulerConfig(**{**defaults, **config}),
            self.cache,
            eos_token_ids=[EOS],
            connector=connector,
            clock=clock,
        )

    def add(self, name: str, prompt: Sequence[int], *, parent: str | None = None, **fields: object) -> None:
        params = {key: fields.pop(key) for key in tuple(fields) if key in SamplingParams.__struct_fields__}
        sampling = SamplingParams(**{"max_tokens": 10, **params})
        self.scheduler.add(
            EngineRequest(request_id=name, prompt_token_ids=list(prompt), params=sampling, parent_id=parent, **fields)
        )

    def plan(self) -> StepPlan:
        plan = self.scheduler.schedule()
        assert plan is not None
        return plan

    def answer(self, plan: StepPlan, token: int = 7, **fields: object) -> list[RequestDelta]:
        rows = self.scheduler._in_flight.rows(plan.step)
        return self.scheduler.update(plan, StepOutput(plan.step, rows, [token] * len(rows), **fields))

    def turn(self, token: int = 7) -> list[RequestDelta]:
        return self.answer(self.plan(), token)

    def names(self, plan: StepPlan) -> list[str]:
        return [new.request_id for new in plan.admitted]

    @property
    def num_owned(self) -> int:
        return sum(pool.capacity - pool.num_free for pool in self.cache.pools)


# --- budget, rows, order -------------------------------------------------------------------------------------


def test_nothing_to_do() -> None:
    engine = Engine()
    assert engine.scheduler.schedule() is None
    assert not engine.scheduler.has_unfinished()


def test_long_prompt_is_computed_in_chunks_beside_a_decode() -> None:
    engine = Engine(max_num_batched_tokens=8)
    engine.add("short", range(1, 4))
    engine.turn()
    engine.add("long", range(20, 40))
    chunks = []
    for _ in range(3):
        plan = engine.plan()
        chunks.append(plan.num_tokens)
        engine.answer(plan)
    assert chunks == [[1, 7], [1, 7], [1, 6]]


def test_without_chunking_a_prompt_waits_until_it_fits_whole() -> None:
    engine = Engine(max_num_batched_tokens=8, enable_chunked_prefill=False)
    engine.add("first", range(1, 6))
    engine.add("second", range(11, 16))
    assert engine.plan().num_tokens == [5]
    assert engine.plan().num_tokens == [1, 5]


def test_rows_are_reused_in_the_plan_that_releases_them() -> None:
    engine = Engine(max_num_seqs=1)
    engine.add("first", [1, 2], max_tokens=1)
    engine.add("second", [3, 4])
    assert engine.turn()[0].finish_reason == "length"
    plan = engine.plan()
    assert (plan.released, plan.admitted[0].row, plan.rows) == ([0], 0, [0])


def test_priority_then_arrival() -> None:
    engine = Engine(policy="priority", max_num_seqs=3)
    engine.add("late", [1], priority=1, arrival_time=2.0)
    engine.add("early", [2], priority=1, arrival_time=1.0)
    engine.add("urgent", [3], priority=0, arrival_time=3.0)
    assert engine.names(engine.plan()) == ["urgent", "early", "late"]


def test_fcfs_does_not_look_at_priority() -> None:
    engine = Engine()
    engine.add("first", [1], priority=5)
    engine.add("second", [2], priority=0)
    assert engine.names(engine.plan()) == ["first", "second"]


def test_a_large_request_at_the_head_is_not_passed_by_small_ones() -> None:
    engine = Engine(num_blocks=9)
    engine.add("running", range(1, 17))
    engine.turn()
    engine.add("large", range(20, 40))
    engine.add("small", [50])
    assert engine.names(engine.plan()) == []


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "fix"),
    [
        ([], {}, "prompt", "at least one token"),
        (range(64), {}, "prompt", "--max-model-len"),
        (range(40), {}, "prompt", "--enable-chunked-prefill"),
        (range(30), {"max_tokens": 30}, "max_tokens", "--kv-cache-memory"),
        ([1], {"max_tokens": 2, "output_token_ids": [5, 6]}, "output_token_ids", "complete"),
    ],
)
def test_what_could_never_run_is_refused(prompt: Sequence[int], fields: dict, param: str, fix: str) -> None:
    engine = Engine(num_blocks=12, enable_chunked_prefill=False)
    with pytest.raises(InvalidRequest, match=fix) as caught:
        engine.add("request", prompt, **fields)
    assert caught.value.param == param
    assert not engine.scheduler.has_unfinished()


def test_an_id_is_used_once_at_a_time() -> None:
    engine = Engine()
    engine.add("request", [1])
    with pytest.raises(InvalidRequest, match="in use"):
        engine.add("request", [2])
    engine.scheduler.abort("request")
    engine.add("request", [2])


def test_queue_limit_counts_new_client_requests_only() -> None:
    engine = Engine(max_queued_requests=2, max_num_seqs=1)
    engine.add("first", [1])
    engine.add("second", [2])
    with pytest.raises(QueueFull, match="--max-queued-requests 2"):
        engine.add("third", [3])
    engine.add("second choice", [2], parent="second")
    engine.add("resumed", [4], output_token_ids=[5])
    engine.plan()
    engine.add("third", [3])
    with pytest.raises(QueueFull):
        engine.add("fourth", [4])


def test_connector_needs_prefix_caching() -> None:
    with pytest.raises(ConfigError, match="--enable-prefix-caching"):
        Engine(caching=False, connector=Shelf())


# --- ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "token", "ending"),
    [
        ({}, EOS, ("stop", None)),
        ({"ignore_eos": True}, EOS, (None, None)),
        ({"min_tokens": 2}, EOS, (None, None)),
        ({"stop_token_ids": (7,)}, 7, ("stop", 7)),
        ({"stop_token_ids": (7,), "min_tokens": 2}, 7, (None, None)),
        ({"stop_token_ids": (7,)}, EOS, ("stop", None)),
        ({"max_tokens": 1}, 7, ("length", None)),
        ({"max_tokens": 1}, EOS, ("stop", None)),
    ],
)
def test_how_a_request_ends(params: dict, token: int, ending: tuple) -> None:
    engine = Engine()
    engine.add("request", [1, 2], **params)
    (delta,) = engine.turn(token)
    assert (delta.token_ids, delta.finish_reason, delta.stop_reason) == ([token], *ending)
    assert engine.scheduler.has_unfinished() == (ending[0] is None)


def test_context_length_ends_a_request() -> None:
    engine = Engine(max_model_len=5)
    engine.add("request", [1, 2, 3], max_tokens=None)
    assert [engine.turn()[0].finish_reason for _ in range(2)] == [None, "length"]
    assert engine.num_owned == 0


def test_resumed_outputs_count_and_are_not_given_again() -> None:
    engine = Engine()
    engine.add("request", [1, 2], output_token_ids=[5, 6], max_tokens=3)
    plan = engine.plan()
    assert plan.admitted[0].token_ids == [1, 2, 5, 6]
    assert plan.admitted[0].num_prompt_tokens == 2
    (delta,) = engine.answer(plan)
    assert (delta.token_ids, delta.finish_reason) == ([7], "length")


def test_the_first_delta_says_how_long_a_request_waited() -> None:
    now = 5.0
    engine = Engine(max_num_seqs=1, clock=lambda: now)
    engine.add("first", [1], max_tokens=2, arrival_time=4.5)
    engine.add("second", [2], max_tokens=2, arrival_time=5.0)
    waited = []
    for _ in range(4):
        waited += [(delta.request_id, delta.queue_seconds) for delta in engine.turn()]
        now += 1.0
    assert waited == [("first", 0.5), ("first", 0.0), ("second", 2.0), ("second", 0.0)]


def test_deadline_ends_running_and_waiting_requests() -> None:
    now = [0.0]
    engine = Engine(clock=lambda: now[0], max_num_seqs=1)
    engine.add("running", [1], deadline=2.0)
    engine.add("waiting", [2], deadline=1.0)
    engine.add("patient", [3])
    plan = engine.plan()
    assert engine.scheduler.expire() == []
    now[0] = 2.0
    ended = engine.scheduler.expire()
    assert [(delta.request_id, delta.finish_reason) for delta in ended] == [
        ("waiting", "deadline"),
        ("running", "deadline"),
    ]
    assert engine.num_owned == 0
    assert engine.answer(plan) == []
    assert engine.names(engine.plan()) == ["patient"]


def test_deadlines_of_ended_requests_are_not_kept() -> None:
    engine = Engine()
    for name in ("a", "b"):
        engine.add(name, [1], deadline=1e9)
        engine.scheduler.abort(name)
    assert engine.scheduler.expire() == []
    assert engine.scheduler._deadlines == []


def test_abort_frees_blocks_at_once_and_drops_what_is_in_flight() -> None:
    engine = Engine()
    engine.add("request", range(1, 9))
    plan = engine.plan()
    assert engine.scheduler.abort("request")
    assert engine.num_owned == 0
    assert engine.answer(plan) == []
    assert not engine.scheduler.abort("request")


def test_logprobs_and_cached_tokens_come_with_the_delta() -> None:
    engine = Engine()
    engine.add("first", range(1, 10))
    engine.turn()
    engine.add("second", range(1, 10))
    plan = engine.plan()
    logprobs = TokenLogprobs(-0.5, 1)
    deltas = engine.answer(plan, logprobs={plan.admitted[0].row: logprobs})
    assert [(delta.num_cached_tokens, delta.logprobs) for delta in deltas] == [(0, None), (8, [logprobs])]
    assert [delta.num_cached_tokens for delta in engine.turn()] == [0, 0]


# --- prefixes and choices ------------------------------------------------------------------------------------


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    engine = Engine()
    engine.add("first", range(1, 10))
    engine.add("second", range(1, 10))
    plan = engine.plan()
    assert plan.num_tokens == [9, 1]
    first, second = (new.block_ids[0] for new in plan.admitted)
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    stats = engine.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (18, 8)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(("length", "copied"), [(10, True), (8, True), (9, False), (1, False)])
def test_choices_share_the_prompt_and_copy_the_block_they_write(length: int, copied: bool, caching: bool) -> None:
    engine = Engine(caching=caching)
    engine.add("parent", range(1, length + 1))
    engine.add("child", range(1, length + 1), parent="parent")
    first = engine.plan()
    assert engine.names(first) == ["parent"]
    second = engine.plan()
    parent, child = first.admitted[0].block_ids[0], second.admitted[0].block_ids[0]
    whole = (length - 1) // SIZE
    assert second.admitted[0].num_computed_tokens == length - 1
    assert child[:whole] == parent[:whole]
    assert child[whole] != parent[whole]
    assert second.kv_ops == ([KVOp("copy", 0, parent[whole], child[whole], request_id="child")] if copied else [])
    assert second.num_tokens == [1, 1]


def test_choice_whose_parent_is_gone_goes_its_own_way() -> None:
    engine = Engine(max_num_batched_tokens=4)
    engine.add("parent", range(1, 11))
    engine.add("child", range(1, 11), parent="parent")
    engine.turn()
    engine.scheduler.abort("parent")
    plan = engine.plan()
    assert engine.names(plan) == ["child"]
    assert plan.admitted[0].num_computed_tokens == SIZE
    engine.add("orphan", [1, 2], parent="parent")
    assert engine.scheduler.abort("child")
    assert engine.names(engine.plan()) == ["orphan"]


def test_waiting_choice_can_be_aborted() -> None:
    engine = Engine()
    engine.add("parent", [1, 2])
    engine.add("child", [1, 2], parent="parent")
    assert engine.scheduler.abort("child")
    engine.turn()
    assert engine.names(engine.plan()) == []


def test_choice_does_not_copy_what_its_parent_computes_in_the_same_plan() -> None:
    engine = Engine(num_blocks=6, caching=False, max_num_seqs=3)
    engine.add("old", range(1, 4), max_tokens=16)
    engine.add("parent", range(21, 24), max_tokens=16)
    engine.turn()
    for _ in range(8):
        engine.turn()
    engine.add("child", range(21, 24), parent="parent", max_tokens=16)  # finds no room: 3 + 3 of 5 blocks are wanted
    while not engine.scheduler.stats().preemptions:
        engine.turn()
    assert engine.scheduler.abort("old")
    plan = engine.plan()
    assert engine.names(plan) == ["parent", "child"]
    assert plan.kv_ops == []
    assert plan.admitted[1].num_computed_tokens == 0


# --- preemption ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "victim"),
    [("fcfs", "second"), ("priority", "first")],
)
def test_the_least_important_is_preempted_and_comes_back_with_its_tokens(policy: str, victim: str) -> None:
    engine = Engine(num_blocks=5, policy=policy, caching=False)
    engine.add("first", [1, 2, 3, 4, 5, 6], priority=1)
    engine.add("second", [11, 12, 13, 14, 15, 16], priority=0)
    for _ in range(3):
        engine.turn()
    plan = engine.plan()
    assert (engine.scheduler.stats().preemptions, len(plan.released), len(plan.rows)) == (1, 1, 1)
    engine.answer(plan, EOS)
    plan = engine.plan()
    assert engine.names(plan) == [victim]
    assert plan.admitted[0].token_ids[6:] == [7, 7, 7]
    assert plan.num_tokens == [9]


def test_without_a_less_important_one_a_request_waits_and_keeps_its_blocks() -> None:
    engine = Engine(num_blocks=6, caching=False)
    engine.add("first", [1, 2, 3, 4, 5, 6])
    engine.add("second", [11, 12, 13, 14, 15])
    for _ in range(4):
        engine.turn()
    plans = [engine.plan(), engine.plan()]
    assert [len(plan.rows) for plan in plans] == [1, 1]  # "first" has the last block, "second" nowhere to write
    assert (engine.scheduler.stats().running, engine.scheduler.stats().preemptions) == (2, 0)


def test_choices_of_a_preempted_parent_do_not_wait_for_it() -> None:
    engine = Engine(num_blocks=7, max_num_batched_tokens=2, caching=False)
    engine.add("first", [1, 2, 3], max_tokens=20)
    engine.add("parent", range(10, 25), max_tokens=2)
    engine.add("child", range(10, 25), parent="parent", max_tokens=2)
    while not engine.scheduler.stats().preemptions:
        engine.turn()
    states = engine.scheduler._requests
    assert states["child"] in engine.scheduler._waiting.requests


def test_a_token_in_flight_survives_preemption() -> None:
    engine = Engine(num_blocks=5, caching=False)
    engine.add("first", [1, 2, 3, 4, 5, 6])
    engine.add("second", [11, 12, 13, 14, 15, 16])
    engine.turn()
    engine.turn()
    before = engine.plan()
    after = engine.plan()
    assert len(before.rows) == 2
    assert len(after.rows) == 1
    engine.scheduler.abort("first")
    assert engine.scheduler.schedule() is None  # the victim's last token is not known yet
    assert [delta.request_id for delta in engine.answer(before, 8)] == ["second"]
    engine.answer(after)
    assert engine.plan().admitted[0].token_ids == [11, 12, 13, 14, 15, 16, 7, 7, 8]


# --- steps ahead ---------------------------------------------------------------------------------------------


def test_steps_ahead_stop_at_the_last_token() -> None:
    engine = Engine()
    engine.add("request", [1, 2], max_tokens=2)
    plans = [engine.plan(), engine.plan()]
    assert [plan.num_tokens for plan in plans] == [[2], [1]]
    assert engine.scheduler.schedule() is None
    assert [engine.answer(plan)[0].finish_reason for plan in plans] == [None, "length"]


def test_what_was_computed_beyond_the_end_is_dropped_though_its_row_is_reused() -> None:
    engine = Engine(max_num_seqs=1)
    engine.add("first", [1, 2])
    engine.add("second", [3, 4])
    plans = [engine.plan(), engine.plan()]
    assert engine.answer(plans[0], EOS)[0].finish_reason == "stop"
    third = engine.plan()
    assert (third.released, engine.names(third)) == ([0], ["second"])
    assert engine.answer(plans[1]) == []
    assert [delta.request_id for delta in engine.answer(third)] == ["second"]


def test_blocks_are_found_once_their_tokens_are_known() -> None:
    engine = Engine()
    engine.add("first", [1, 2, 3])
    plans = [engine.plan(), engine.plan()]
    engine.answer(plans[0])
    engine.add("second", [1, 2, 3, 7, 9])
    assert engine.plan().admitted[0].num_computed_tokens == SIZE


def test_an_output_that_does_not_answer_its_plan_is_an_error() -> None:
    engine = Engine()
    engine.add("request", [1, 2])
    plans = [engine.plan(), engine.plan()]
    with pytest.raises(PlatformError, match="step 0 comes next"):
        engine.scheduler.update(plans[1], StepOutput(1, [0], [7]))
    with pytest.raises(PlatformError, match=r"samples rows \[0\], the output has \[\]"):
        engine.scheduler.update(plans[0], StepOutput(0, [], []))


# --- connectors ----------------------------------------------------------------------------------------------


class Shelf(KVIndex):
    """Has the first `held` blocks of everything, and wants all others."""

    def __init__(self, held: int = 0) -> None:
        self.held = held
        self.num_lookups = 0

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        self.num_lookups += 1
        return max(0, min(self.held, len(hashes)) - num_local)

    def wants(self, block_hash: bytes) -> bool:
        return True


def test_loads_park_a_request_while_others_go_on() -> None:
    engine = Engine(connector=Shelf(held=2), groups=(FULL, SLIDING))
    engine.add("parked", range(1, 13))
    engine.add("other", [50, 51])
    plan = engine.plan()
    assert engine.names(plan) == ["other"]
    loads = [(op.kind, op.group, op.request_id) for op in plan.kv_ops]
    assert loads == [("load", 0, "parked"), ("load", 0, "parked"), ("load", 1, "parked")]
    assert engine.scheduler.stats().waiting_for_kv == 1
    engine.answer(plan, kv_loaded=["parked"])
    plan = engine.plan()
    assert plan.admitted[0].num_computed_tokens == 8
    assert [op.dst for op in plan.kv_ops] == []


def test_failed_loads_are_computed() -> None:
    engine = Engine(connector=Shelf(held=2))
    engine.add("request", range(1, 13))
    plan = engine.plan()
    assert (plan.rows, len(plan.kv_ops)) == ([], 2)
    engine.answer(plan, kv_failed=["request"])
    plan = engine.plan()
    assert plan.admitted[0].num_computed_tokens == 0
    assert plan.num_tokens == [12]


def test_a_request_that_waits_for_room_is_looked_up_once() -> None:
    shelf = Shelf()
    engine = Engine(connector=shelf, num_blocks=6)
    engine.add("first", range(50, 65), max_tokens=5)
    engine.turn()
    shelf.held = 2
    engine.add("second", range(1, 14), max_tokens=2)
    for _ in range(4):
        assert engine.turn()
    assert shelf.num_lookups == 2
    plan = engine.plan()
    assert [op.request_id for op in plan.kv_ops if op.kind == "load"] == ["second", "second"]
    engine.answer(plan, kv_loaded=["second"])
    assert engine.plan().admitted[0].num_computed_tokens == 8
    stats = engine.scheduler.stats()
    assert (stats.external_queries, stats.external_hits) == (24, 8)
    assert shelf.num_lookups == 2


def test_while_only_loads_are_under_way_plans_are_empty_and_one_at_a_time() -> None:
    engine = Engine(connector=Shelf(held=2))
    engine.add("request", range(1, 13))
    engine.turn()
    poll = engine.plan()
    assert (poll.rows, poll.kv_ops) == ([], [])
    assert engine.scheduler.schedule() is None
    engine.answer(poll)
    assert engine.scheduler.has_unfinished()


def test_abort_keeps_blocks_that_are_being_written() -> None:
    engine = Engine(connector=Shelf(held=2))
    engine.add("request", range(1, 13))
    plan = engine.plan()
    assert engine.scheduler.abort("request")
    assert engine.num_owned == 2
    assert engine.scheduler.has_unfinished()
    with pytest.raises(InvalidRequest, match="in use"):
        engine.add("request", [1])
    engine.answer(plan, kv_loaded=["request"])
    assert engine.num_owned == 0
    assert not engine.scheduler.has_unfinished()


def test_full_blocks_are_saved_by_the_next_plan() -> None:
    engine = Engine(connector=Shelf())
    engine.add("request", range(1, 10), max_tokens=1)
    plan = engine.plan()
    assert plan.kv_ops == []
    engine.answer(plan)
    assert engine.scheduler.has_unfinished()
    saves = engine.plan().kv_ops
    assert [(op.kind, op.src) for op in saves] == [("save", block) for block in plan.admitted[0].block_ids[0][:2]]
    assert len({op.key for op in saves}) == 2
    assert not engine.scheduler.has_unfinished()


def test_an_unknown_load_is_an_error() -> None:
    engine = Engine(connector=Shelf())
    engine.add("request", [1, 2])
    with pytest.raises(PlatformError, match="'stranger', which waits for none"):
        engine.answer(engine.plan(), kv_loaded=["stranger"])


def test_a_request_whose_form_failed_ends_alone() -> None:
    engine = Engine()
    engine.add("bad", [1, 2])
    engine.add("good", [3, 4])
    ahead = [engine.plan(), engine.plan()]
    deltas = engine.answer(ahead[0], failed={ahead[0].rows[0]: "nothing may follow"})
    assert [(d.request_id, d.token_ids, d.finish_reason, d.error) for d in deltas] == [
        ("bad", [], "error", "nothing may follow"),
        ("good", [7], None, None),
    ]
    deltas = engine.answer(ahead[1], failed={ahead[1].rows[0]: "nothing may follow"})
    assert [d.request_id for d in deltas] == ["good"], "what was in flight for it is dropped"
    assert engine.plan().released == ahead[0].rows[:1]
