"""Replays in virtual time: a timeline counted by hand, conservation, and the search for enough devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_engine import exact_profile, sim_engine

from core import plugins
from core.config import parse_options, resolve
from core.errors import ConfigError
from core.simulate.capacity import fewest
from core.simulate.prompts import PromptMaker
from core.simulate.replay import Outcome, Replay, virtual_clock
from core.simulate.simulation import Objective, Simulation, figures
from core.simulate.trace import TraceRequest


def ask(arrival: float, prompt: int, output: int, line: int, **more: Any) -> TraceRequest:
    return TraceRequest(arrival=arrival, prompt_tokens=prompt, output_tokens=output, line=line, **more)


@pytest.fixture(scope="session")
def one_second(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A device whose every step takes a second, whatever it computes."""
    file = tmp_path_factory.mktemp("profile") / "second.json"
    file.write_bytes(msgspec.json.encode(exact_profile(host_step_s=1.0)))
    return str(file)


def replay(model: Path, profile: str, requests: list[TraceRequest], **options: Any) -> Outcome:
    engine = sim_engine(model, profile=profile, **options)
    clock = virtual_clock(engine, "sim")
    return Replay(engine, clock, PromptMaker(384, 0), lambda tokens: None).run(requests)


def test_a_timeline_counted_by_hand(small: Path, one_second: str) -> None:
    """Two steps are in flight, so what comes during a step is in the one after next.

    Step   takes     computes
    0      0 … 1     A's prompt
    1      1 … 2     A's 2nd token
    2      2 … 3     A's 3rd token, and the prompt of B, which came at 0.5
    3      3 … 4     B's 2nd token
    4      10 … 11   C's prompt, after the device stood idle
    """
    outcome = replay(small, one_second, [ask(0, 10, 3, 1), ask(0.5, 20, 2, 2), ask(10, 5, 1, 3)])
    assert [sample.first for sample in outcome.samples] == pytest.approx([1.0, 3.0, 11.0])
    assert [sample.last for sample in outcome.samples] == pytest.approx([3.0, 4.0, 11.0])
    assert (outcome.busy, outcome.end, outcome.stats.steps) == pytest.approx((5.0, 11.0, 5))
    found = figures([outcome])
    assert found["ttft_mean"] == pytest.approx((1.0 + 2.5 + 1.0) / 3)
    assert found["tpot_mean"] == pytest.approx((1.0 + 1.0) / 2)
    assert found["e2e_p99"] == pytest.approx(3.5, rel=0.01)
    assert found["device_busy_percent"] == pytest.approx(100 * 5 / 11)
    assert found["output_tokens_per_s"] == pytest.approx(6 / 11)
    assert (found["input_tokens"], found["output_tokens"]) == (35, 6)


def test_a_full_batch_makes_others_wait(small: Path, one_second: str) -> None:
    outcome = replay(small, one_second, [ask(0, 4, 2, i) for i in range(3)], max_num_seqs=1)
    assert [sample.first for sample in outcome.samples] == pytest.approx([1.0, 3.0, 5.0])


def test_priorities_count(small: Path, one_second: str) -> None:
    requests = [ask(0, 4, 4, 1), ask(0.1, 4, 1, 2, priority=5), ask(0.2, 4, 1, 3, priority=-5)]
    outcome = replay(small, one_second, requests, max_num_seqs=1, scheduling_policy="priority")
    assert outcome.samples[2].last < outcome.samples[1].last


def test_a_shared_prefix_is_computed_once(small: Path, one_second: str) -> None:
    shared = {"shared": (("system", 64),)}
    outcome = replay(small, one_second, [ask(0, 80, 1, 1, **shared), ask(5, 80, 1, 2, **shared), ask(9, 80, 1, 3)])
    assert outcome.stats.prefix_hits == 64
    assert figures([outcome])["prefix_hit_percent"] == pytest.approx(100 * 64 / 240)


def test_what_the_queue_refuses_is_counted(small: Path, one_second: str) -> None:
    outcome = replay(small, one_second, [ask(0, 4, 2, i) for i in range(4)], max_num_seqs=1, max_queued_requests=1)
    assert [sample.rejected for sample in outcome.samples] == [False, True, True, True]
    found = figures([outcome])
    assert (found["requests"], found["rejected"], found["output_tokens"]) == (4, 3, 2)


REQUESTS = st.lists(
    st.tuples(st.floats(0, 2), st.integers(1, 60), st.integers(1, 30), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(requests=REQUESTS, blocks=st.integers(7, 40), budget=st.integers(4, 64))
def test_every_request_ends_with_its_tokens(
    small: Path, requests: list[tuple[float, int, int, bool]], blocks: int, budget: int
) -> None:
    trace = [
        ask(arrival, prompt, output, line, shared=(("p", prompt // 2),) if shares and prompt > 1 else ())
        for line, (arrival, prompt, output, shares) in enumerate(sorted(requests), 1)
    ]
    outcome = replay(
        small,
        "xeon",
        trace,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        max_model_len=90,
        kv_cache_memory=str(blocks * 3 * 2 * 32 * 16 * 2),
    )
    assert [sample.output_tokens for sample in outcome.samples] == [request.output_tokens for request in trace]
    assert all(sample.arrival < sample.first <= sample.last <= outcome.end for sample in outcome.samples)
    assert outcome.stats.generated_tokens == sum(request.output_tokens for request in trace)
    assert outcome.stats.running == outcome.stats.waiting == 0 and outcome.stats.kv_usage == 0.0
    assert 0.0 < outcome.busy <= outcome.end and 0.0 <= outcome.kv_peak <= 1.0


def test_the_same_trace_gives_the_same_figures(small: Path) -> None:
    trace = [ask(i / 100, 20 + i, 10, i) for i in range(20)]
    assert figures([replay(small, "h100", trace)]) == figures([replay(small, "h100", trace)])


def test_real_time_is_refused(small: Path) -> None:
    with pytest.raises(ConfigError, match="runs in real time"):
        virtual_clock(sim_engine(small, clock="real"), "sim")


# --- enough devices ------------------------------------------------------------------------------------------


@given(needed=st.integers(2, 200), guess=st.integers(0, 300), most=st.integers(2, 200))
def test_the_fewest_that_meet(needed: int, guess: int, most: int) -> None:
    tried: list[int] = []

    def meets(number: int) -> bool:
        tried.append(number)
        return number >= needed

    assert fewest(meets, guess, most) == (needed if needed <= most else None)
    assert len(tried) == len(set(tried)) <= 17 and all(1 < number <= most for number in tried)


def simulation(model: Path, profile: str, trace: list[TraceRequest]) -> Simulation:
    own = (f"sim.profile={profile}", "sim.clock=virtual")
    options = parse_options(
        {"load_format": "dummy", "platform": "sim", "platform_opt": own, "max_num_seqs": 1, "max_queued_requests": 0}
    )
    return Simulation(resolve(str(model), options), plugins.choose(options), trace)


def devices(found: Simulation, **objective: float) -> int | None:
    return found.devices_for(Objective(**objective), lambda title: lambda tokens: None)


def test_devices_for_an_objective_counted_by_hand(small: Path, one_second: str) -> None:
    """Ten requests come together and take a second each, one after the other on a device."""
    found = simulation(small, one_second, [ask(0, 4, 1, i) for i in range(10)])
    assert devices(found, ttft=10.0) == 1
    assert devices(found, ttft=5.0) == 2
    assert devices(found, ttft=2.0) == 5
    assert devices(found, ttft=1.0) == 10
    assert devices(found, ttft=0.9) is None
    run = found.run(2, lambda tokens: None)
    assert (run["replicas"], run["devices"], run["requests"]) == (2, 2, 10)
    assert run["simulated_s"] == pytest.approx(5.0) and run["device_busy_percent"] == pytest.approx(100.0)


def test_the_objective_counts_time_per_token_too(small: Path, one_second: str) -> None:
    found = simulation(small, one_second, [ask(i, 4, 3, i) for i in range(3)])
    assert devices(found, tpot=1.0) == 1
    assert devices(found, tpot=0.5) is None


def test_requests_that_do_not_fit_are_named_before_anything_runs(small: Path, one_second: str) -> None:
    with pytest.raises(ConfigError, match="line 7: 500 prompt"):
        simulation(small, one_second, [ask(0, 500, 20, 7)])
