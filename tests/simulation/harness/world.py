"""The whole server of one scenario, and the one question to it: does everything hold?"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from core.engine.child import Child, OnReport
from core.engine.messages import EngineSpec, EngineStatus, Planned, Spec
from core.engine.supervisor import GIVE_UP_AFTER, Launch, Supervisor
from core.errors import EngineDead
from core.platform import ChosenPlatform
from core.types import EngineRequest, EngineStats
from harness.children import EngineChild, FrontendChild, task_factory
from harness.frontend import Reader
from harness.kv import Sequences, Store
from harness.network import Network, SimHub
from harness.reference import Answer
from harness.scenario import Scenario, StepFault
from harness.trace import Trace, Violation
from harness.virtual_time import Deadlock, VirtualLoop

#: Virtual seconds after the last event by which everything must have ended: restarts wait up to 30 s each.
PATIENCE_S = 300.0
#: What a process takes to start.
START_S = 0.01
#: No scenario needs nearly as many.
MOST_STEPS = 20_000


class NoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A simulated frontend has none."""


class World:
    """Everything that lives while one scenario runs."""

    def __init__(self, scenario: Scenario, *, keep_trace: bool = False) -> None:
        self.scenario = scenario
        self.loop = VirtualLoop()
        self.loop.set_task_factory(task_factory)
        self.loop.set_exception_handler(self._on_unhandled)
        self.trace = Trace(self.loop.time, keep=keep_trace)
        self.random = random.Random(f"{scenario.seed}/engine")
        self.network = Network(self.loop, random.Random(f"{scenario.seed}/network"), scenario.slowest_message)
        self.sequences = Sequences(scenario.shape.block_size)
        self.store = Store()
        self.answers: dict[str, Answer] = {}
        self.lost_at: dict[str, float] = {}  # requests whose frontend died, and when
        self.is_closing = False  # nobody comes any more
        self.readers: list[Reader] = []
        self._engine: EngineChild | None = None  # the one that lives, or the last
        self._frontends: dict[int, FrontendChild] = {}  # those that live, by slot
        self._started = 0
        self._started_frontends = 0
        self._unready_deaths = 0
        self._was_ready = False
        self._steps = 0
        self._faults = {fault.step: fault for fault in scenario.faults.steps}
        self._settled = asyncio.Event()
        self._violation: Violation | None = None

    def run(self) -> None:
        """Let the scenario happen. Raises the first Violation."""
        with _logs_into(self.trace):
            try:
                self.loop.run_until_complete(self._happen())
            except Violation as violation:
                self.violate(violation)
            except Deadlock as error:
                self.violate(Violation("ends-in-time", str(error)))
            except Exception as error:  # after a violation: that the loop was stopped
                self.violate(Violation("nothing-is-unhandled", f"{type(error).__name__}: {error}"))
            finally:
                self._clean_up()
        if self._violation is not None:
            raise self._violation

    def violate(self, violation: Violation) -> None:
        """End the run."""
        if self._violation is None:
            self._violation = violation
            self.trace.note("violation", "%s", violation)
        if self.loop.is_running():
            self.loop.stop()

    def _on_unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        del loop
        error = context.get("exception")
        if isinstance(error, Violation):
            self.violate(error)
        else:
            self.violate(Violation("nothing-is-unhandled", f"{context['message']}: {error!r}"))

    def _clean_up(self) -> None:
        """After a violation there are tasks left, and nothing to learn from them."""
        self.trace.keep = False
        self.loop.set_exception_handler(lambda loop, context: None)
        with suppress(RuntimeError, Deadlock):
            self.loop.run_until_complete(_end_tasks())
        self.loop.close()

    # --- the story -------------------------------------------------------------------------------------------

    async def _happen(self) -> None:
        launch = Launch(
            config=self.scenario.shape.config(),
            chosen=ChosenPlatform("sim"),
            frontend_options=NoOptions(),
            listen_fd=-1,
            api_server_count=self.scenario.frontends,
            shutdown_timeout_s=self.scenario.drain_s,
        )
        supervisor = Supervisor(launch, self, open_hub=lambda: SimHub.open(self.network), start_child=self.start_child)
        serving = asyncio.create_task(supervisor.run())
        self._set_timers()
        await self._all_to_end(serving)
        if await self._rest(serving):
            self._check_nothing_left(supervisor)
            self.loop.raise_signal(signal.SIGTERM)
        await asyncio.wait([serving], timeout=PATIENCE_S)
        self._check_end(serving)

    def _set_timers(self) -> None:
        faults = self.scenario.faults
        for moment in faults.engine_deaths:
            self.loop.call_at(moment, self._kill_engine)
        for moment, slot in faults.frontend_deaths:
            self.loop.call_at(moment, self._kill_frontend, slot)
        for moment in faults.shutdowns:
            self.loop.call_at(moment, self.loop.raise_signal, signal.SIGTERM)

    def _kill_engine(self) -> None:
        if self._engine is not None:
            self._engine.kill()

    def _kill_frontend(self, slot: int) -> None:
        if slot in self._frontends:
            self._frontends[slot].kill()

    async def _all_to_end(self, serving: asyncio.Task[None]) -> None:
        """Wait until everybody has come and has their answer, or the server has ended."""
        last = self.scenario.last_event
        await asyncio.wait([serving], timeout=last)
        while not serving.done() and not all(reader.end for reader in self.readers):
            remaining = last + PATIENCE_S - self.loop.time()
            if remaining <= 0:
                waiting = [reader.request.request_id for reader in self.readers if reader.end is None]
                raise Violation("ends-in-time", f"{waiting} still wait at {self.loop.time():.3f}")
            self._settled.clear()
            settled = asyncio.create_task(self._settled.wait())
            await asyncio.wait([serving, settled], timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            settled.cancel()

    async def _rest(self, serving: asyncio.Task[None]) -> bool:
        """Wait until everything is up and nothing is to be done. False if the server ends instead."""
        self.is_closing = True
        for frontend in self._frontends.values():
            frontend.life.send_home()
        give_up = self.loop.time() + PATIENCE_S
        while self.loop.time() < give_up:
            await asyncio.wait([serving], timeout=2 * self.network.slowest + 0.01)  # what was under way has arrived
            if serving.done():
                return False
            if self._is_up() and self._is_idle():
                return True
        raise Violation("ends-in-time", "the server never rests")

    def _is_up(self) -> bool:
        clients = [frontend.life.client for frontend in self._frontends.values() if frontend.life.client is not None]
        return len(clients) == self.scenario.frontends

    def _is_idle(self) -> bool:
        engine = None if self._engine is None or self._engine.end.done() else self._engine.life.engine
        return engine is not None and engine.loop is not None and not engine.has_work()

    # --- what must hold --------------------------------------------------------------------------------------

    def _check_nothing_left(self, supervisor: Supervisor) -> None:
        assert self._engine is not None and self._engine.life.engine is not None
        self._engine.life.engine.check_nothing_left()
        for frontend in self._frontends.values():
            frontend.life.check_nothing_left()
        pids = {frontend.pid for frontend in self._frontends.values()}
        if supervisor._frontends.keys() != pids or not supervisor._connected.keys() <= pids:
            raise Violation("nothing-is-left", f"the supervisor has frontends {list(supervisor._frontends)} of {pids}")

    def _check_end(self, serving: asyncio.Task[None]) -> None:
        if not serving.done():
            raise Violation("ends-in-time", "the server does not end")
        error = serving.exception()
        if isinstance(error, EngineDead):
            right = self.may_give_up()
        else:
            right = error is None or len(self.scenario.faults.failed_frontends) > GIVE_UP_AFTER
        if not right:
            raise Violation("ends-with-its-reason", f"the server: {error!r}")
        if self._frontends or (self._engine is not None and not self._engine.end.done()):
            raise Violation("nothing-is-left", "a child outlives its supervisor")
        unanswered = [reader.request.request_id for reader in self.readers if reader.end is None]
        if unanswered:
            raise Violation("ends-with-its-reason", f"{unanswered} never heard of the end")

    def may_give_up(self) -> bool:
        """Whether so many engines failed to start that the supervisor ends the server."""
        return not self._was_ready or self._unready_deaths > GIVE_UP_AFTER

    # --- children --------------------------------------------------------------------------------------------

    async def start_child(self, spec: Spec, on_report: OnReport, *, fds: tuple[int, ...] = ()) -> Child:
        """A `StartChild`."""
        del fds
        await asyncio.sleep(START_S)
        self._started += 1
        if isinstance(spec, EngineSpec):
            self._engine = EngineChild(self, spec, self._started, on_report)
            self._engine.begin()
            return self._engine
        slot = next(slot for slot in range(self.scenario.frontends) if slot not in self._frontends)
        self._started_frontends += 1
        fails = self._started_frontends in self.scenario.faults.failed_frontends
        frontend = self._frontends[slot] = FrontendChild(self, spec, self._started, on_report, slot, fails=fails)
        frontend.begin()
        return frontend

    def engine_ready(self) -> None:
        """An engine serves."""
        self._was_ready = True
        self._unready_deaths = 0

    def engine_ended(self) -> None:
        """However it did."""
        self._unready_deaths += 1

    def frontend_ended(self, slot: int) -> None:
        """However it did."""
        del self._frontends[slot]

    # --- requests --------------------------------------------------------------------------------------------

    def know(self, request: EngineRequest) -> Answer:
        """What the request must be given."""
        answer = self.answers[request.request_id] = Answer(request)
        return answer

    def reader(self, request: EngineRequest) -> Reader:
        """Somebody who waits for it."""
        self.readers.append(Reader(self, request))
        return self.readers[-1]

    def settle(self) -> None:
        """Somebody has their answer."""
        self._settled.set()

    def token_at(self, request_id: str, position: int) -> int:
        """The token at a position of a request. Raises Violation beyond its longest answer."""
        answer = self.answers[request_id]
        if position >= answer.longest:
            raise Violation("nothing-beyond-the-end", f"{request_id} computes position {position} of {answer.longest}")
        return answer.at(position)

    # --- steps -----------------------------------------------------------------------------------------------

    def next_step(self) -> StepFault | None:
        """Count a step; what goes wrong with it."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Violation("ends-in-time", f"{self._steps} steps")
        return self._faults.get(self._steps)

    def refuses_blocks(self) -> bool:
        """Whether the step that is being planned gets no block. Asked once for each: the next engine has better luck."""
        fault = self._faults.get(self._steps + 1)
        if fault is None or fault.kind != "allocate":
            return False
        del self._faults[fault.step]
        return True

    # --- whoever watches -------------------------------------------------------------------------------------

    def status(self, status: EngineStatus) -> None:
        self.trace.note("supervisor", "%s %s %s", status.state, status.stage, status.message)

    def planned(self, planned: Planned) -> None:
        self.trace.note("supervisor", "planned %d blocks", planned.memory_plan["num_blocks"])

    def serving(self) -> None:
        self.trace.note("supervisor", "serving")
        for frontend in self._frontends.values():
            client = frontend.life.client
            if client is None or client.status.state == "loading":
                raise Violation("serving-is-true", f"frontend {frontend.pid} does not know that the engine is ready")

    def check_stats(self, stats: EngineStats) -> None:
        """What the engine says of itself."""
        if not (0 <= stats.running <= self.scenario.shape.max_num_seqs and 0.0 <= stats.kv_usage <= 1.0):
            raise Violation("stats-are-sane", f"{stats}")


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


class _TraceHandler(logging.Handler):
    def __init__(self, trace: Trace) -> None:
        super().__init__(logging.WARNING)
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        self._trace.note("log", "%s", record.getMessage())


@contextmanager
def _logs_into(trace: Trace) -> Iterator[None]:
    """What core logs is part of the trace, and of nothing else."""
    logger, handler = logging.getLogger("core"), _TraceHandler(trace)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(handler)
