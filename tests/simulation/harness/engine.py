"""One engine's life: the real engine and its loop on the simulated device, from birth to whatever ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.clock import VirtualClock
from core.engine.core import Engine
from core.engine.loop import EngineLoop
from core.engine.messages import EngineSpec, Progress, Ready, planned
from core.platform import MemoryPlan, Plan
from core.platform import Progress as OnProgress
from core.scheduler.transfers import Transfers
from core.types import EngineRequest, EngineStats, KVGroupSpec, RequestDelta, StepPlan
from harness import invariants
from harness.device import CheckedExecutor, CheckedPlatform, Shelf
from harness.kv import KVModel, Node
from harness.network import SimMailbox
from harness.scenario import Scenario, StepFault
from harness.trace import BadLuck, Violation
from harness.virtual_time import sleep_until

if TYPE_CHECKING:
    from harness.children import EngineChild
    from harness.world import World

#: What a turn of the loop takes beside the device's work, and what reading the weights does.
TURN_S = 20e-6
LOAD_S = 0.2


class EngineLife:
    """What the engine's process would be. Its clock runs ahead of the loop's while it computes a step."""

    def __init__(self, world: World, child: EngineChild, spec: EngineSpec, number: int) -> None:
        self.scenario: Scenario = world.scenario
        self.born = world.loop.time()
        self.engine: CheckedEngine | None = None
        self._world = world
        self._child = child
        self._spec = spec
        self._number = number  # of the engines of this server, from 1
        self._platform = CheckedPlatform(self)
        self._mailbox: SimMailbox | None = None

    @property
    def clock(self) -> VirtualClock:
        clock = self._platform.clock
        assert isinstance(clock, VirtualClock)
        return clock

    async def run(self) -> str:
        """As `core.engine.process` does it; how it ended, for people. Raises what would end the process."""
        self.engine = engine = CheckedEngine(self, self._build())
        await self.catch_up()
        self._mailbox = mailbox = SimMailbox(self._world.network, self._spec.endpoint, self.clock)
        self._child.report(Ready(), self.clock.now())
        self._world.engine_ready()
        loop = engine.loop = EngineLoop(engine, mailbox)  # type: ignore[arg-type]
        while True:
            if not engine.has_work():
                await mailbox.readable()
            self.clock.sleep_until(self._world.loop.time())
            self.clock.advance(TURN_S)
            if not loop.turn():
                break
            await self.catch_up()
        engine.shutdown()
        return "ended with status 0"

    async def catch_up(self) -> None:
        """Wait until the loop's time is this engine's."""
        await sleep_until(self.clock.now())

    def stop(self) -> None:
        """The supervisor closed stdin."""
        if self._mailbox is not None:
            self._mailbox.stop()

    def ended(self) -> None:
        """Nobody listens any more."""
        self._world.network.unbind(self._spec.endpoint)
        self._world.engine_ended()

    def _build(self) -> Engine:
        child, clock = self._child, self.clock

        def on_planned(plan: Plan, memory_plan: MemoryPlan) -> None:
            child.report(planned(plan, memory_plan), clock.now())

        def on_progress(stage: str, fraction: float) -> None:
            child.report(Progress(stage, fraction), clock.now())

        try:
            engine = Engine.on(self._platform, self._spec.config, on_progress, on_planned)
        except Exception:
            self.check_memory()
            raise
        if self.scenario.shape.connector:
            scheduler = engine._scheduler
            shelf = Shelf(self._world.store, len(scheduler._cache.pools))
            scheduler._transfers = Transfers(scheduler._cache, shelf)
        return engine

    def check_memory(self) -> None:
        """When the engine has ended by itself, or could not be built."""
        if held := self._platform.memory().in_use():
            raise Violation("nothing-is-left", f"device memory: {held}")

    # --- what the executor asks ---

    def trace(self, event: str, *args: object) -> None:
        self._world.trace.note(f"engine {self._number}", event, *args, moment=self.clock.now())

    def load_weights(self, progress: OnProgress) -> None:
        """Loading takes its time, and fails where the scenario says so."""
        for part in range(1, 5):
            self.clock.advance(LOAD_S / 4)
            progress("loading", part / 5)
            if part == 2 and self._number in self.scenario.faults.failed_starts:
                raise BadLuck("the device does not answer")

    def kv_model(self, groups: Sequence[KVGroupSpec], num_blocks: int) -> KVModel:
        world = self._world
        return KVModel(groups, num_blocks, world.sequences, world.store, world.token_at)

    def next_step(self) -> StepFault | None:
        """What goes wrong with the step that is being submitted."""
        return self._world.next_step()

    def check_plan(self, plan: StepPlan) -> None:
        assert self.engine is not None
        self.engine.check_plan(plan)

    def root_of(self, request_id: str) -> Node:
        """Where a request's sequence begins."""
        assert self.engine is not None
        salt = self._world.answers[request_id].request.cache_salt
        return self._world.sequences.root(salt, self.engine.scheduler._cache.new_tables(salt).root)

    def is_unread(self, request_id: str) -> bool:
        """Whether its frontend is known to have gone to whoever sends to it now."""
        lost_at = self._world.lost_at.get(request_id)
        return lost_at is not None and self.clock.now() >= lost_at + self._world.network.slowest

    def draw_load(self) -> tuple[float, bool]:
        """When a connector's load is over, and whether it succeeds."""
        rng, scenario = self._world.random, self.scenario
        return self.clock.now() + scenario.kv_delay * rng.random(), rng.random() >= scenario.kv_failures

    def die_at(self, moment: float) -> None:
        self._world.loop.call_at(moment, self._child.kill)

    def poisoned(self, plan: StepPlan) -> bool:
        """Whether the plan admits the request that ends engines."""
        return any(admission.request_id == self.scenario.faults.poison for admission in plan.admitted)

    def refuses_blocks(self) -> bool:
        """Whether the step that is being planned gets no block."""
        return self._world.refuses_blocks()


class CheckedEngine:
    """The engine as its loop sees it, with what must hold of every call held."""

    def __init__(self, life: EngineLife, engine: Engine) -> None:
        self._life = life
        self._engine = engine
        self.scheduler = engine._scheduler
        assert isinstance(engine._executor, CheckedExecutor)
        self._executor = engine._executor
        self._live: dict[str, float | None] = {}  # deadline, by request
        self._unread: set[str] = set()  # who has been given something that nobody could be sent
        self.loop: EngineLoop | None = None

    def add(self, request: EngineRequest) -> None:
        self._engine.add(request)
        self._live[request.request_id] = request.deadline
        self._life.trace("takes %s with %d emitted", request.request_id, len(request.output_token_ids))

    def abort(self, request_id: str) -> None:
        self._life.trace("aborts %s", request_id)
        self._live.pop(request_id, None)
        self._engine.abort(request_id)

    def has_work(self) -> bool:
        return self._engine.has_work()

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def shutdown(self) -> None:
        self._life.trace("shuts down")
        self._engine.shutdown()
        self._life.check_memory()

    def step(self) -> list[RequestDelta]:
        begun, done = self._life.clock.now(), self._executor.done
        deltas = self._step()
        if self._executor.done == done and not deltas:
            raise Violation("first-advances", f"nothing runs for {list(self.scheduler._requests)}")
        for delta in deltas:
            self._check_delta(delta, begun)
        self.check()
        return deltas

    def _step(self) -> list[RequestDelta]:
        if not self._life.refuses_blocks():
            return self._engine.step()
        pools = self.scheduler._cache.pools
        for pool in pools:
            pool.allocate = _refuse  # type: ignore[method-assign]
        try:
            return self._engine.step()
        finally:
            for pool in pools:
                del pool.allocate

    def _check_delta(self, delta: RequestDelta, begun: float) -> None:
        self._life.trace("gives %s %s %s", delta.request_id, delta.token_ids, delta.finish_reason or "")
        if delta.request_id not in self._live:
            raise Violation("ended-is-silent", f"{delta.request_id} gets {delta} after its end")
        deadline = self._live[delta.request_id]
        if deadline is not None and delta.token_ids and deadline < begun:
            raise Violation("deadlines-are-kept", f"{delta.request_id} gets {delta} after {deadline}, at {begun}")
        if delta.finish_reason == "deadline" and (deadline is None or deadline > self._life.clock.now()):
            raise Violation("deadlines-are-kept", f"{delta.request_id} ends before {deadline}")
        if self._life.is_unread(delta.request_id) and delta.request_id in self._unread:
            raise Violation("ended-is-silent", f"{delta.request_id} runs on, and nobody is there to read it")
        if self._life.is_unread(delta.request_id):
            self._unread.add(delta.request_id)
        if delta.finish_reason is not None:
            del self._live[delta.request_id]

    def check_plan(self, plan: StepPlan) -> None:
        """Before a plan is executed."""
        shape = self._life.scenario.shape
        loading = bool(self._executor.model.loading)
        invariants.check_plan(
            self.scheduler, plan, budget=shape.budget, max_num_seqs=shape.max_num_seqs, loading=loading
        )
        if self._life.poisoned(plan):
            raise BadLuck("a request that no engine survives")

    def check(self) -> None:
        """Between steps."""
        invariants.check_blocks(self.scheduler, self._executor.model)
        invariants.check_rows(self.scheduler, self._life.scenario.shape.max_num_seqs)
        if self._live.keys() != self.scheduler._requests.keys():
            raise Violation("ended-is-silent", f"{self._live.keys() ^ self.scheduler._requests.keys()} ended unsaid")

    def check_nothing_left(self) -> None:
        """When every client has gone."""
        invariants.check_nothing_left(self.scheduler)
        assert self.loop is not None
        if self.loop._owners or self._live:
            raise Violation("nothing-is-left", f"the loop has owners of {list(self.loop._owners)}")


def _refuse(count: int) -> list[int]:
    raise BadLuck(f"{count} KV blocks, which the simulation refuses")
