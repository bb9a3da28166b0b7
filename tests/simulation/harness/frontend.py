"""One frontend's life: the real client, and the people behind it who ask, read, leave and abort as the scenario says."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from core.engine.client import MAX_DEATHS, RemoteEngineClient
from core.engine.messages import FrontendSpec
from core.errors import CoreError, EngineDead, InvalidRequest, QueueFull
from core.types import EngineRequest, RequestDelta
from harness.network import SimTransport
from harness.scenario import Arrival
from harness.trace import Violation
from harness.virtual_time import sleep_until

if TYPE_CHECKING:
    from harness.world import World


class Reader:
    """Whoever waits for one choice: holds what it gets against what the model says."""

    def __init__(self, world: World, request: EngineRequest) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.end: str | None = None  # how it ended: a finish reason, an error's name, `left` or `lost`
        self.aborted = False
        self._world = world
        self._answer = world.know(request)
        self._deaths = lambda: 0  # of engines since it asked, as far as its client has heard

    async def run(self, client: RemoteEngineClient) -> None:
        """Read to the end, whatever that is."""
        before = client.status.restarts
        self._deaths = lambda: client.status.restarts - before
        try:
            async with aclosing(client.generate(self.request)) as deltas:
                async for delta in deltas:
                    self._take(delta)
            if self.end is None:
                raise Violation("ends-with-its-reason", f"{self.request.request_id} just stops")
        except Violation as violation:
            self._world.violate(violation)
        except CoreError as error:
            self._check_error(error)
            self._finish(type(error).__name__)
        except asyncio.CancelledError:
            self._finish("left")

    def lose(self) -> None:
        """Its frontend has ended."""
        if self.end is None:
            self._world.lost_at[self.request.request_id] = self._world.loop.time()
            self._finish("lost")

    def _finish(self, how: str) -> None:
        self.end = self.end or how
        self._world.trace.note(self.request.request_id, "%s with %d tokens", self.end, len(self.tokens))
        self._world.settle()

    def _take(self, delta: RequestDelta) -> None:
        name = self.request.request_id
        if self.end is not None:
            raise Violation("final-is-last", f"{name} gets {delta} after {self.end}")
        self.tokens += delta.token_ids
        if self.tokens != self._answer.tokens[: len(self.tokens)]:
            raise Violation("tokens-are-the-references", f"{name} got {self.tokens} of {self._answer.tokens}")
        if delta.finish_reason is not None:
            self._check_reason(delta)
            self._finish(delta.finish_reason)

    def _check_reason(self, delta: RequestDelta) -> None:
        answer, deadline = self._answer, self.request.deadline
        match delta.finish_reason:
            case "stop" | "length":
                right = (self.tokens, delta.finish_reason) == (answer.tokens, answer.reason)
                right = right and delta.stop_reason == (self.tokens[-1] if answer.reason == "stop" else None)
            case "abort":
                right = self.aborted
            case "deadline":
                right = deadline is not None and deadline <= self._world.loop.time()
            case "error":
                right = self._deaths() >= MAX_DEATHS
        if not right:
            raise Violation("ends-with-its-reason", f"{self.request.request_id}: {delta} after {self.tokens}")

    def _check_error(self, error: CoreError) -> None:
        """Only what the limits, or an engine that cannot be brought back, explain."""
        shape = self._world.scenario.shape
        hopeless = not shape.chunked and len(self.request.prompt_token_ids) > shape.budget
        match error:
            case QueueFull():
                right = shape.max_queued > 0
            case InvalidRequest():
                right = hopeless
            case EngineDead():
                right = self._world.may_give_up()
            case _:
                right = False
        if not right:
            violation = Violation("ends-with-its-reason", f"{self.request.request_id}: {type(error).__name__}: {error}")
            self._world.violate(violation)


class FrontendLife:
    """What the frontend's process would be, without HTTP."""

    def __init__(self, world: World, spec: FrontendSpec, pid: int, slot: int) -> None:
        self._world = world
        self._spec = spec
        self._slot = slot
        self._transport = SimTransport(world.network, pid)
        self._draining = asyncio.Event()
        self._dead = False
        self._visitors: list[asyncio.Task[None]] = []
        self._readers: list[tuple[Reader, asyncio.Task[None]]] = []
        self.client: RemoteEngineClient | None = None

    async def run(self) -> None:
        world = self._world
        self.client = RemoteEngineClient(self._spec.control_endpoint, self._spec.config, self._transport)
        if not world.is_closing:
            self._let_in(self.client)
        await self._draining.wait()
        self.send_home()
        for _, reading in self._readers:
            await asyncio.wait([reading])
        await self.client.close()

    def drain(self) -> None:
        """SIGTERM: take nobody new, and end when those that are there have their answers."""
        self._draining.set()

    def send_home(self) -> None:
        """Let nobody ask any more."""
        for visitor in self._visitors:
            visitor.cancel()

    def ended(self) -> None:
        """The process has ended: nobody is left to read an answer."""
        self._dead = True
        self._transport.die()
        for reader, _ in self._readers:
            reader.lose()

    def check_nothing_left(self) -> None:
        """When every client has gone."""
        assert self.client is not None
        if self.client._streams or self.client._stats_waiters:
            raise Violation("nothing-is-left", f"the client has streams of {list(self.client._streams)}")

    # --- people ---

    def _let_in(self, client: RemoteEngineClient) -> None:
        scenario = self._world.scenario
        for arrival in scenario.arrivals:
            if arrival.frontend == self._slot and arrival.at >= self._world.loop.time():
                self._visitors.append(asyncio.create_task(self._arrive(client, arrival)))
        self._visitors.append(asyncio.create_task(self._wait_until_ready(client)))
        if scenario.stats_every is not None:
            self._visitors.append(asyncio.create_task(self._ask_for_stats(client, scenario.stats_every)))

    async def _arrive(self, client: RemoteEngineClient, arrival: Arrival) -> None:
        loop = self._world.loop
        await sleep_until(arrival.at)
        for choice, request in enumerate(arrival.requests(loop.time())):
            reader = self._world.reader(request)
            reading = asyncio.create_task(reader.run(client))
            self._readers.append((reader, reading))
            if (leaves := arrival.leaves[choice]) is not None:
                loop.call_later(leaves, reading.cancel)
            if (aborted := arrival.aborts[choice]) is not None:
                loop.call_later(aborted, self._abort, client, reader)

    def _abort(self, client: RemoteEngineClient, reader: Reader) -> None:
        if reader.end is None and not self._dead:
            self._world.trace.note(reader.request.request_id, "is aborted")
            reader.aborted = True
            self._visitors.append(asyncio.create_task(client.abort(reader.request.request_id)))

    async def _wait_until_ready(self, client: RemoteEngineClient) -> None:
        try:
            await client.wait_ready()
        except EngineDead:
            return
        if client.config.scheduler != self._world.scenario.shape.config().scheduler:
            self._world.violate(Violation("stats-are-sane", f"the engine's limits are {client.config.scheduler}"))

    async def _ask_for_stats(self, client: RemoteEngineClient, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            try:
                stats = await client.stats()
            except EngineDead:
                return
            self._world.check_stats(stats)
