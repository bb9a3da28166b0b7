"""The parent of a server: one engine process and its frontends, kept alive until told otherwise. Torch-free.

An engine that dies is replaced; frontends are told over the control socket and give the new one what was running
(`core.engine.client`). What can only fail again ends the server instead: an engine that never got ready, or several
in a row. Children cannot outlive `Supervisor.run`: each is owned by the task that started it, which stops it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from core.config import Config
from core.engine.child import Child, ChildProcess, StartChild
from core.engine.messages import (
    EngineSpec,
    EngineStatus,
    FrontendSpec,
    Hello,
    Planned,
    Progress,
    Ready,
    Report,
    StateChange,
    encode,
)
from core.engine.sockets import SocketHub
from core.engine.transport import OpenHub, Peer
from core.errors import CoreError, EngineDead
from core.logs import get_logger
from core.platform import ChosenPlatform

#: Deaths without a ready in between after which a child is given up.
GIVE_UP_AFTER = 5
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
#: A child that was ready for this long is taken for sound: its next death counts as the first.
SOUND_AFTER_S = 60.0
#: What an engine gets to give its devices back, and frontends to deliver their last errors.
GRACE_S = 5.0

log = get_logger("supervisor")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to run. Names are `module:attribute`, so that the supervisor imports neither the engine nor the server."""

    config: Config
    chosen: ChosenPlatform
    frontend_options: msgspec.Struct
    listen_fd: int  # a listening socket, shared by the frontends
    api_server_count: int = 1
    shutdown_timeout_s: float = 30.0
    engine_factory: str = "core.engine.core:Engine.build"
    frontend_entry: str = "core.server.app:run_frontend"


class Observer(Protocol):
    """Whoever wants to know how the server is doing: the terminal."""

    def status(self, status: EngineStatus) -> None:
        """The engine's status changed."""

    def planned(self, planned: Planned) -> None:
        """An engine said how the platform will run the model."""

    def serving(self) -> None:
        """The engine is ready and every frontend is up, for the first time."""


class RestartPolicy:
    """When to start a child again: at once, then after 1, 2, 4 … 30 seconds, or never."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deaths = 0
        self._unready_deaths = 0
        self._ready_at: float | None = None

    def ready(self) -> None:
        """The child got ready."""
        self._ready_at = self._clock()
        self._unready_deaths = 0

    def died(self) -> float | None:
        """Seconds to wait before the next start; None: give up."""
        if self._ready_at is not None and self._clock() - self._ready_at >= SOUND_AFTER_S:
            self._deaths = 0
        self._ready_at = None
        self._deaths += 1
        self._unready_deaths += 1
        if self._unready_deaths > GIVE_UP_AFTER:
            return None
        return 0.0 if self._deaths == 1 else min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._deaths - 2))


class Supervisor:
    """Runs one server from start to end: `await Supervisor(launch, observer).run()`, once.

    `open_hub` and `start_child` say what the server is made of: sockets and processes.
    """

    def __init__(
        self,
        launch: Launch,
        observer: Observer,
        *,
        open_hub: OpenHub = SocketHub.open,
        start_child: StartChild = ChildProcess.start,
    ) -> None:
        self._launch = launch
        self._observer = observer
        self._open_hub = open_hub
        self._start_child = start_child
        self._state = StateChange(status=EngineStatus(platform=launch.chosen.name))
        self._peers: dict[Peer, None] = {}  # frontends on the hub, told in the order they came
        self._frontends: dict[int, tuple[Child, RestartPolicy]] = {}  # by process id
        self._connected: dict[int, int] = {}  # by process id: the engine that a frontend sends requests to
        self._planned_config = launch.config
        self._was_ready = False
        self._was_serving = False
        self._draining = False
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

        Raises EngineDead where no engine can be brought up, CoreError where no frontend can.
        """
        self._engine_policy = RestartPolicy(asyncio.get_running_loop().time)
        with self._signals(), self._open_hub() as self._hub:
            await self._serve()

    def _on_signal(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def _serve(self) -> None:
        engine = asyncio.create_task(self._keep_engine())
        frontends = [asyncio.create_task(self._keep_frontend()) for _ in range(self._launch.api_server_count)]
        control = asyncio.create_task(self._answer_frontends())
        keepers: list[asyncio.Task[Any]] = [engine, control, *frontends]
        stop: asyncio.Task[Any] = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
            failure = next((task.exception() for task in keepers if task.done()), None)
            await self._drain(frontends, failure)
        finally:
            for task in (stop, *keepers):
                task.cancel()
            await asyncio.gather(stop, *keepers, return_exceptions=True)
        if failure is not None:
            raise failure

    async def _drain(self, frontends: list[asyncio.Task[None]], failure: BaseException | None) -> None:
        """Let the frontends finish what runs; after a failure, tell their clients of it."""
        self._draining = True
        if failure is None:
            log.info("draining", timeout_s=self._launch.shutdown_timeout_s)
            self._announce(state="draining")
        for child, _ in self._frontends.values():
            child.terminate()
        drained: asyncio.Future[Any] = asyncio.gather(*frontends, return_exceptions=True)
        now: asyncio.Future[Any] = asyncio.create_task(self._stop_now.wait())
        timeout = self._launch.shutdown_timeout_s if failure is None else GRACE_S
        await asyncio.wait([drained, now], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        now.cancel()

    # --- the engine ---

    async def _keep_engine(self) -> None:
        """Start engines, one after another, as long as that makes sense. Raises EngineDead."""
        while True:
            reason = f"the engine {await self._run_engine(self._state.incarnation + 1)}"
            delay = self._engine_policy.died() if self._was_ready else None
            if delay is None:
                if self._was_ready:
                    reason += f"; so did {GIVE_UP_AFTER} before it, and none of them got ready"
                self._announce(state="failed", message=reason)
                raise EngineDead(reason)
            log.error(f"{reason}; starting another", delay_s=delay)
            restarts = self._state.status.restarts + 1
            self._announce(state="restarting", message=reason, restarts=restarts, stage="", progress=0.0)
            await asyncio.sleep(delay)

    async def _run_engine(self, incarnation: int) -> str:
        """One engine from start to end; how it ended."""
        endpoint = self._hub.endpoint(f"engine-{incarnation}")
        self._state = msgspec.structs.replace(self._state, incarnation=incarnation)
        child = await self._start_child(
            EngineSpec(
                factory=self._launch.engine_factory,
                config=self._launch.config,
                chosen=self._launch.chosen,
                endpoint=endpoint,
            ),
            lambda report: self._on_engine_report(report, endpoint),
        )
        try:
            reason = await child.ended()
        finally:
            # One that is still loading has nothing to give back, and would not look up from it.
            await child.stop(GRACE_S if self._state.endpoint == endpoint else 0.0)
            self._state = msgspec.structs.replace(self._state, endpoint=None, config=None)
            self._hub.retire(endpoint)
        return reason

    def _on_engine_report(self, report: Report, endpoint: str) -> None:
        match report:
            case Progress(stage, fraction):
                state = self._state.status.state
                if state == "starting":
                    state = "loading"
                self._announce(state=state, stage=stage, progress=min(1.0, fraction))
            case Planned(config):
                self._planned_config = config
                self._observer.planned(report)
                self._announce(memory_plan=report.memory_plan)
            case Ready():
                self._was_ready = True
                self._engine_policy.ready()
                self._state = msgspec.structs.replace(self._state, endpoint=endpoint, config=self._planned_config)
                state = "draining" if self._draining else "ready"
                self._announce(state=state, stage="", progress=1.0, message="")
                if self._state.status.restarts:
                    log.info("the engine is ready again", restarts=self._state.status.restarts)

    # --- frontends ---

    async def _keep_frontend(self) -> None:
        policy = RestartPolicy(asyncio.get_running_loop().time)
        while True:
            child = await self._start_frontend()
            self._frontends[child.pid] = child, policy
            if self._draining:  # since before it could be told
                child.terminate()
            try:
                reason = await child.ended()
            finally:
                del self._frontends[child.pid]
                self._connected.pop(child.pid, None)
                await child.stop(0.0)
            if self._draining:
                return
            delay = policy.died()
            if delay is None or (child.failure is not None and child.failure.expected):
                raise CoreError(f"the frontend {reason}")
            log.error(f"the frontend {reason}; starting another", delay_s=delay)
            await asyncio.sleep(delay)

    async def _start_frontend(self) -> Child:
        options = self._launch.frontend_options
        return await self._start_child(
            FrontendSpec(
                entry=self._launch.frontend_entry,
                options_type=f"{type(options).__module__}:{type(options).__qualname__}",
                options=msgspec.Raw(encode(options)),
                config=self._launch.config,
                listen_fd=self._launch.listen_fd,
                control_endpoint=self._hub.endpoint("control"),
                num_frontends=self._launch.api_server_count,
            ),
            lambda report: None,  # it has nothing to report but its failure, which the child keeps
            fds=(self._launch.listen_fd,),
        )

    async def _answer_frontends(self) -> None:
        decoder = msgspec.msgpack.Decoder(Hello)
        while True:
            peer, message = await self._hub.receive()
            hello = decoder.decode(message)
            if not hello.incarnation:
                self._peers[peer] = None
                self._tell(peer)
            if hello.pid in self._frontends:
                self._frontends[hello.pid][1].ready()
                self._connected[hello.pid] = hello.incarnation
                self._check_serving()

    def _check_serving(self) -> None:
        """Say so once a request is answered whichever frontend it comes to."""
        connected = sum(engine == self._state.incarnation for engine in self._connected.values())
        if connected == self._launch.api_server_count and not self._was_serving:
            self._was_serving = True
            self._observer.serving()

    # --- what frontends are told ---

    def _announce(self, **changes: Any) -> None:
        """Change the status, and tell everyone."""
        status = msgspec.structs.replace(self._state.status, **changes)
        self._state = msgspec.structs.replace(self._state, status=status)
        self._observer.status(status)
        for peer in list(self._peers):
            self._tell(peer)

    def _tell(self, peer: Peer) -> None:
        if not self._hub.send(peer, encode(self._state)):
            del self._peers[peer]
