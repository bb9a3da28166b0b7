"""The executor: what its tokens depend on, how time passes, what memory it takes, and its life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_engine import configured, drain, exact_profile, request, sim_engine, write_model

from core.clock import VirtualClock
from core.errors import OutOfDeviceMemory, PlatformError, Unsupported
from core.recording import record_model
from core.types import Admission, EngineRequest, KVOp, SamplingParams, StepPlan
from platforms.sim.executor import SimExecutor
from platforms.sim.memory import SimMemory
from platforms.sim.profile import Profile

# --- tokens --------------------------------------------------------------------------------------------------


def alone(small: Path, wanted: EngineRequest) -> list[int]:
    engine = sim_engine(small, enable_prefix_caching=False)
    engine.add(wanted)
    return drain(engine)[wanted.request_id]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=6),
    budget=st.integers(4, 64),
    blocks=st.integers(8, 30),
    caching=st.booleans(),
)
def test_tokens_depend_on_seed_and_position_only(
    small: Path, lengths: list[tuple[int, int]], budget: int, blocks: int, caching: bool
) -> None:
    """Neither on the batch, nor on chunks, prefix hits or preemptions, of which a small cache makes many."""
    requests = [
        request(str(i), list(range(3, 3 + prompt)), tokens, seed=i) for i, (prompt, tokens) in enumerate(lengths)
    ]
    engine = sim_engine(
        small,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        max_model_len=110,
        kv_cache_memory=str(blocks * 3 * 2 * 32 * 16 * 2),
        enable_prefix_caching=caching,
    )
    for wanted in requests:
        engine.add(wanted)
    together = drain(engine)
    for wanted in requests:
        assert together[wanted.request_id] == alone(small, wanted)


def test_preemption_does_happen_there(small: Path) -> None:
    engine = sim_engine(small, max_num_seqs=4, max_model_len=110, kv_cache_memory=str(9 * 3 * 2 * 32 * 16 * 2))
    for i in range(4):
        engine.add(request(str(i), [3 + i] * 20, 80, seed=i))
    tokens = drain(engine)
    assert engine.stats().preemptions > 0
    assert all(tokens[str(i)] == alone(small, request("x", [3 + i] * 20, 80, seed=i)) for i in range(4))


def test_seeds_and_choices_draw_differently(small: Path) -> None:
    prompt = [5, 6, 7]
    first, other_seed, again = (alone(small, request("x", prompt, 30, seed=seed)) for seed in (1, 2, 1))
    second = EngineRequest(
        request_id="x", prompt_token_ids=prompt, choice_index=1, params=request("x", prompt, 30, seed=1).params
    )
    assert first == again
    assert len({tuple(first), tuple(other_seed), tuple(alone(small, second))}) == 3


def test_greedy_depends_on_the_prompt_instead(small: Path) -> None:
    def greedy(prompt: list[int], seed: int) -> list[int]:
        return alone(small, request("x", prompt, 30, seed=seed, temperature=0.0))

    assert greedy([5, 6], 1) == greedy([5, 6], 2) != greedy([6, 5], 1)


def test_tokens_are_of_the_vocabulary_and_end_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", vocab_size=8, eos_token_id=[0, 3, 7])
    engine = sim_engine(model, max_model_len=500)
    engine.add(EngineRequest(request_id="x", prompt_token_ids=[1], params=SamplingParams(max_tokens=400, seed=3)))
    tokens = drain(engine)["x"]
    assert len(tokens) == 400 and set(tokens) == {1, 2, 4, 5, 6}


# --- time ----------------------------------------------------------------------------------------------------


def executor(model: Path, profile: Profile, clock: VirtualClock, **options: Any) -> SimExecutor:
    config = configured(model, kv_cache_memory="1MiB", **options)
    return SimExecutor(config, record_model(config), profile, SimMemory(profile), clock)


def admitted(step: int, row: int, prompt: int) -> StepPlan:
    new = Admission(
        row=row,
        request_id=str(row),
        token_ids=[3] * prompt,
        num_prompt_tokens=prompt,
        num_computed_tokens=0,
        block_ids=[[1]],
        params=SamplingParams(max_tokens=5, seed=0),
        choice_index=0,
    )
    return StepPlan(step, [], [new], [row], [prompt], [], [])


def test_steps_follow_one_another(small: Path) -> None:
    clock = VirtualClock(100.0)
    device = executor(small, exact_profile(host_step_s=2.0, host_sequence_s=0.5), clock)
    first = device.submit(admitted(0, 0, 4))
    second = device.submit(StepPlan(1, [], [], [0], [1], [], []))
    assert clock.now() == 100.0
    assert device.collect(first).rows == [0] and clock.now() == pytest.approx(102.5)
    clock.advance(0.5)
    third = device.submit(admitted(2, 1, 4))  # behind the second, which runs already
    device.collect(second)
    assert clock.now() == pytest.approx(105.0)
    clock.advance(10.0)  # while the third ends
    device.collect(third)
    assert clock.now() == pytest.approx(115.0)
    device.collect(device.submit(StepPlan(3, [], [], [1], [1], [], [])))  # an idle device starts at once
    assert clock.now() == pytest.approx(117.5)


def test_only_the_last_known_token_samples(small: Path) -> None:
    device = executor(small, exact_profile(), VirtualClock())
    plan = admitted(0, 3, 10)
    plan.num_tokens = [6]
    assert device.collect(device.submit(plan)).rows == []
    output = device.collect(device.submit(StepPlan(1, [], [], [3], [4], [], [])))
    assert output.rows == [3] and len(output.token_ids) == 1


def test_block_copies_take_time(small: Path) -> None:
    clock = VirtualClock()
    device = executor(small, exact_profile(memory_bandwidth=1.0), clock)
    device.collect(device.submit(StepPlan(0, [], [], [], [], [], [KVOp("copy", 0, 1, 2)])))
    assert clock.now() == pytest.approx(2 * device.plan_memory().kv_block_bytes)


def test_blocks_from_elsewhere_are_refused(small: Path) -> None:
    device = executor(small, exact_profile(), VirtualClock())
    with pytest.raises(Unsupported, match="use no connector"):
        device.submit(StepPlan(0, [], [], [], [], [], [KVOp("load", 0, 0, 2)]))


def test_misuse_is_said(small: Path) -> None:
    device = executor(small, exact_profile(), VirtualClock())
    first, second = device.submit(admitted(0, 0, 4)), device.submit(admitted(1, 1, 4))
    with pytest.raises(RuntimeError, match="2 steps are in flight"):
        device.submit(admitted(2, 2, 4))
    with pytest.raises(RuntimeError, match="not the oldest"):
        device.collect(second)
    device.collect(first)
    assert device.health().ok
    device.shutdown()
    device.shutdown()
    assert not device.health().ok
    with pytest.raises(PlatformError, match="shut down"):
        device.submit(admitted(3, 3, 4))


# --- memory --------------------------------------------------------------------------------------------------


def test_memory_is_taken_as_planned_and_given_back(small: Path) -> None:
    config = configured(small, kv_cache_memory="1MiB")
    memory = SimMemory(exact_profile())
    device = SimExecutor(config, record_model(config), exact_profile(), memory, VirtualClock())
    plan = device.plan_memory()
    device.load(lambda *_: None)
    device.allocate_kv(plan.num_blocks)
    assert memory.in_use() == {
        "weights": plan.weights, "activations": plan.activations, "inputs": plan.inputs, "kv": plan.kv_cache
    }  # fmt: skip
    assert memory.info().free == plan.free - plan.total
    device.shutdown()
    assert memory.in_use() == {} and memory.info().free == plan.free


def test_a_full_device_refuses(small: Path) -> None:
    memory = SimMemory(exact_profile(memory_bytes=1 << 20))
    config = configured(small, kv_cache_memory="1MiB")
    device = SimExecutor(config, record_model(config), exact_profile(), memory, VirtualClock())
    device.load(lambda *_: None)
    with pytest.raises(OutOfDeviceMemory, match="kv: "):
        device.allocate_kv(10**6)
