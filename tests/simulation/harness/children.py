"""Children without processes: a task that can be killed, what it reports, and how it ended."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from core.engine.child import Child, OnReport
from core.engine.messages import EngineSpec, Failed, FrontendSpec, Report, failed
from harness.engine import EngineLife
from harness.frontend import FrontendLife
from harness.network import Lane
from harness.trace import BadLuck, Violation

if TYPE_CHECKING:
    from harness.world import World

#: The child whose code runs: its tasks die with it.
RUNNING: contextvars.ContextVar[SimChild | None] = contextvars.ContextVar("RUNNING", default=None)


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Tasks that belong to the child that makes them."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    child = RUNNING.get()
    if child is not None:
        child.tasks.append(task)
    return task


class SimChild(Child):
    """One child. `live` is what its process would do."""

    def __init__(self, world: World, name: str, pid: int, on_report: OnReport) -> None:
        self.name = name
        self.tasks: list[asyncio.Task[Any]] = []
        self.end: asyncio.Future[str] = world.loop.create_future()
        self._world = world
        self._pid = pid
        self._failure: Failed | None = None
        self._on_report = on_report
        self._reports = Lane(world.network, self._hear)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def failure(self) -> Failed | None:
        return self._failure

    def begin(self) -> None:
        """Start the child's first task."""
        context = contextvars.copy_context()
        context.run(RUNNING.set, self)
        context.run(self._world.loop.create_task, self._live())

    def report(self, report: Report, moment: float) -> None:
        self._reports.send(report, moment)

    def _hear(self, report: Report) -> None:
        if isinstance(report, Failed):
            self._failure = report
        self._on_report(report)

    async def _live(self) -> None:
        try:
            how = await self.live()
        except asyncio.CancelledError:
            return  # killed
        except Violation as violation:
            self._world.violate(violation)
            return
        except Exception as error:
            how = await self.fail(error)
        self._ended(how)

    async def live(self) -> str:
        raise NotImplementedError

    async def fail(self, error: Exception) -> str:
        """The process reports what it raised, and ends."""
        report = failed(error)
        self.report(report, self._world.loop.time())
        return f"failed: {report.message}"

    def kill(self) -> None:
        """SIGKILL."""
        self._ended("was killed by SIGKILL")

    def _ended(self, how: str) -> None:
        if self.end.done():
            return
        self._world.trace.note(self.name, "%s", how)
        self._reports.flush(self._world.loop.time())
        self.let_go()
        self.end.set_result(how)
        for task in self.tasks:
            task.cancel()

    def let_go(self) -> None:
        """What the kernel closes for a process that ends."""
        raise NotImplementedError

    async def ended(self) -> str:
        await asyncio.wait([self.end])
        return self.end.result()

    def terminate(self) -> None:
        """SIGTERM, which engines ignore."""

    async def stop(self, grace_s: float) -> None:
        self.ask_to_end()
        await asyncio.wait([self.end], timeout=grace_s)
        self.kill()

    def ask_to_end(self) -> None:
        """Stdin is closed, which frontends do not look at."""


class EngineChild(SimChild):
    """An engine's process."""

    def __init__(self, world: World, spec: EngineSpec, pid: int, on_report: OnReport) -> None:
        number = int(spec.endpoint.rpartition("-")[2])
        super().__init__(world, f"engine {number}", pid, on_report)
        self.life = EngineLife(world, self, spec, number)

    async def live(self) -> str:
        return await self.life.run()

    async def fail(self, error: Exception) -> str:
        if not isinstance(error, BadLuck):
            self._world.violate(Violation("engines-live", f"{self.name}: {type(error).__name__}: {error}"))
        await self.life.catch_up()
        return await super().fail(error)

    def let_go(self) -> None:
        self.life.ended()

    def ask_to_end(self) -> None:
        self.life.stop()


class FrontendChild(SimChild):
    """A frontend's process."""

    def __init__(
        self, world: World, spec: FrontendSpec, pid: int, on_report: OnReport, slot: int, *, fails: bool
    ) -> None:
        super().__init__(world, f"frontend {slot}", pid, on_report)
        self._slot = slot
        self._fails = fails
        self.life = FrontendLife(world, spec, pid, slot)

    async def live(self) -> str:
        if self._fails:
            raise BadLuck("the frontend has no port")
        await self.life.run()
        return "ended with status 0"

    def let_go(self) -> None:
        self.life.ended()
        self._world.frontend_ended(self._slot)

    def terminate(self) -> None:
        self.life.drain()
