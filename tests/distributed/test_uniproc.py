"""The executor with a worker that computes nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

import pytest

from core.distributed.uniproc import UniprocExecutor
from core.errors import DeviceLost, PlatformError, Unsupported
from core.platform import Health, Plan, Platform
from core.types import KVTransferStats, StepOutput, StepPlan


class FakeWorker:
    """Notes the thread of every call; a step numbered in `fails` raises, and every step waits for `gate`."""

    def __init__(self, platform: FakePlatform, plan: Plan) -> None:
        if platform.refuses:
            raise Unsupported("this model", "the worker says so")
        self.gate = platform.gate
        self.fails: dict[int, Exception] = {}
        self.calls: list[tuple[str, int]] = []
        platform.made = self
        self._note("init")

    def _note(self, name: str) -> None:
        self.calls.append((name, threading.get_ident()))

    def load(self, progress: Any) -> None:
        self._note("load")
        progress("loading", 1.0)

    def measure_kv_budget(self) -> int:
        self._note("measure")
        return 1234

    def execute(self, plan: StepPlan) -> StepOutput:
        assert self.gate.wait(10)
        self._note(f"step {plan.step}")
        if plan.step in self.fails:
            raise self.fails[plan.step]
        return StepOutput(plan.step, plan.rows, [plan.step])

    def kv_transfers(self) -> KVTransferStats:
        return KVTransferStats(saved=3)

    def health(self) -> Health:
        return Health(ok=True)

    def shutdown(self) -> None:
        self._note("shutdown")


class FakePlatform:
    worker = "fake_worker_module:FakeWorker"
    max_in_flight = 2
    refuses = False
    made: FakeWorker

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> FakePlatform:
    module = ModuleType("fake_worker_module")
    module.FakeWorker = FakeWorker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_worker_module", module)
    return FakePlatform()


@pytest.fixture
def executor(platform: FakePlatform) -> Iterator[UniprocExecutor]:
    before = set(threading.enumerate())
    executor = make(platform)
    yield executor
    platform.gate.set()
    executor.shutdown()
    assert set(threading.enumerate()) <= before


def make(platform: FakePlatform) -> UniprocExecutor:
    return UniprocExecutor(cast("Platform", platform), cast("Plan", None))


def step(number: int) -> StepPlan:
    return StepPlan(number, [], [], [0], [1], [], [])


def test_everything_runs_on_one_other_thread(executor: UniprocExecutor, platform: FakePlatform) -> None:
    seen: list[tuple[str, float]] = []
    executor.load(lambda what, done: seen.append((what, done)))
    assert seen == [("loading", 1.0)]
    assert executor.measure_kv_budget() == 1234
    assert executor.collect(executor.submit(step(1))).token_ids == [1]
    assert executor.health().ok
    executor.shutdown()
    names, threads = zip(*platform.made.calls, strict=True)
    assert names == ("init", "load", "measure", "step 1", "shutdown")
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_submit_returns_before_the_step_has_run(executor: UniprocExecutor, platform: FakePlatform) -> None:
    platform.gate.clear()
    tickets = [executor.submit(step(1)), executor.submit(step(2))]
    assert [name for name, _ in platform.made.calls] == ["init"]
    with pytest.raises(RuntimeError, match="2 steps are in flight"):
        executor.submit(step(3))
    with pytest.raises(RuntimeError, match="step 2 is not the oldest"):
        executor.collect(tickets[1])
    platform.gate.set()
    assert [executor.collect(ticket).step for ticket in tickets] == [1, 2]
    with pytest.raises(RuntimeError, match="not the oldest"):
        executor.collect(tickets[1])


def test_whoever_looks_at_transfers_waits_for_no_step(executor: UniprocExecutor, platform: FakePlatform) -> None:
    platform.gate.clear()
    ticket = executor.submit(step(1))
    assert executor.kv_transfers() == KVTransferStats(saved=3)
    platform.gate.set()
    executor.collect(ticket)


def test_collect_raises_what_the_step_raised(executor: UniprocExecutor, platform: FakePlatform) -> None:
    platform.made.fails = {1: ValueError("bad step"), 2: DeviceLost("it fell off the bus")}
    with pytest.raises(ValueError, match="bad step"):
        executor.collect(executor.submit(step(1)))
    with pytest.raises(DeviceLost, match="it fell off the bus"):
        executor.collect(executor.submit(step(2)))
    assert executor.collect(executor.submit(step(3))).step == 3


def test_shutdown_lets_steps_end_and_may_be_repeated(executor: UniprocExecutor, platform: FakePlatform) -> None:
    platform.gate.clear()
    ticket = executor.submit(step(1))
    threading.Timer(0.05, platform.gate.set).start()
    executor.shutdown()
    executor.shutdown()
    assert [name for name, _ in platform.made.calls] == ["init", "step 1", "shutdown"]
    assert executor.collect(ticket).step == 1
    assert not executor.health().ok
    with pytest.raises(PlatformError, match="shut down"):
        executor.submit(step(2))
    with pytest.raises(PlatformError, match="shut down"):
        executor.measure_kv_budget()


def test_a_worker_that_cannot_be_made_leaves_no_thread(platform: FakePlatform) -> None:
    before = set(threading.enumerate())
    platform.refuses = True
    with pytest.raises(Unsupported, match="the worker says so"):
        make(platform)
    assert set(threading.enumerate()) <= before
