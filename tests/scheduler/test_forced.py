"""Tokens that a form forces: however many steps are planned ahead, each request gets the tokens it gets with one."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cache import CacheManager
from core.config import SchedulerConfig
from core.scheduler import Scheduler
from core.types import EngineRequest, KVGroupSpec, SamplingParams, StepOutput, StepPlan

PROMPT = 5
LENGTH = 30
SIZE = 4


class Runner:
    """Keeps to what a plan means, and forces tokens behind a sampled one as `forced` says by its position."""

    def __init__(self, forced: list[int]) -> None:
        self.forced = forced
        self.known: dict[int, int] = {}
        self.computed: dict[int, int] = {}

    def execute(self, plan: StepPlan) -> StepOutput:
        for admission in plan.admitted:
            self.known[admission.row] = len(admission.token_ids)
            self.computed[admission.row] = admission.num_computed_tokens
        output = StepOutput(plan.step, [], [])
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            self.computed[row] += count
            assert self.computed[row] <= self.known[row], "what is not known cannot be computed"
            if self.computed[row] < self.known[row]:
                continue
            position = self.known[row]
            output.rows.append(row)
            output.token_ids.append(1000 + position)
            self.known[row] += 1
            if count := self.forced[position % len(self.forced)]:
                output.forced[row] = [2000 + position + index for index in range(1, count + 1)]
                self.known[row] += count
        return output


def answers(forced: list[int], ahead: int, blocks: int, requests: int) -> tuple[dict[str, list[int]], int]:
    """What each request got, and how many steps that took."""
    group = KVGroupSpec(layers=(0,), num_kv_heads=1, head_dim=8)
    cache = CacheManager([group], blocks, SIZE, enable_prefix_caching=True, fingerprint="model")
    config = SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=8, max_model_len=64)
    scheduler, runner = Scheduler(config, cache, eos_token_ids=[0]), Runner(forced)
    for index in range(requests):
        params = SamplingParams(max_tokens=LENGTH)
        prompt = [10 * index + at for at in range(PROMPT)]
        scheduler.add(EngineRequest(request_id=f"{index}", prompt_token_ids=prompt, params=params))
    got: dict[str, list[int]] = {}
    flying: deque[tuple[StepPlan, StepOutput]] = deque()
    steps = 0
    while scheduler.has_unfinished():
        while len(flying) < ahead and (plan := scheduler.schedule()) is not None:
            flying.append((plan, runner.execute(plan)))
            steps += 1
        for delta in scheduler.update(*flying.popleft()):
            got.setdefault(delta.request_id, []).extend(delta.token_ids)
            assert (delta.finish_reason == "length") == (len(got[delta.request_id]) == LENGTH)
    assert all(pool.num_free == pool.capacity for pool in cache.pools) or flying
    return got, steps


@given(
    forced=st.lists(st.sampled_from([0, 0, 1, 2, 3, 9]), min_size=1, max_size=7),
    ahead=st.integers(1, 4),
    blocks=st.sampled_from([12, 16, 40]),
    requests=st.integers(1, 4),
)
def test_the_tokens_do_not_depend_on_how_far_ahead_steps_are_planned(
    forced: list[int], ahead: int, blocks: int, requests: int
) -> None:
    alone, _ = answers(forced, 1, 40, 1)
    found, _ = answers(forced, ahead, blocks, requests)
    assert len(alone["0"]) == LENGTH and found == {str(index): alone["0"] for index in range(requests)}


@pytest.mark.parametrize("ahead", [1, 2])
def test_forced_tokens_take_no_steps_of_their_own(ahead: int) -> None:
    assert answers([9], ahead, 40, 1)[1] < answers([0], ahead, 40, 1)[1] // 3
