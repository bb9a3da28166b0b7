"""What a frontend holds of the engine: requests go in, deltas come out, and a new engine takes over unnoticed.

Torch-free. The client keeps each live request with the tokens that it has emitted. When an engine dies, the
supervisor brings up another; the client gives it every live request again with those tokens, and since a token
depends on the request's seed and position only, the streams go on as if nothing had happened.
"""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import msgspec

from core.config import Config
from core.engine.messages import (
    Abort,
    Deltas,
    EngineStatus,
    FromEngine,
    GetStats,
    Hello,
    Rejected,
    Reset,
    ResetPrefixCache,
    StateChange,
    Stats,
    Submit,
    encode,
    request_error,
)
from core.engine.output import joined
from core.engine.sockets import SocketTransport
from core.engine.transport import Connection, Transport
from core.errors import EngineDead, InvalidRequest, QueueFull
from core.logs import get_logger
from core.types import EngineRequest, EngineStats, FinishReason, RequestDelta

#: A request that got nothing from so many engines in a row before they died is taken for the cause, and not given to
#: another. Its last chance it gets alone: all others wait until the engine has given it something, so they outlive it.
MAX_DEATHS = 3
#: So is one that was running in so many, whatever it got: what kills slowly has to end too.
MAX_SLOW_DEATHS = 10

log = get_logger("client")


class EngineClient(abc.ABC):
    """An engine, wherever it runs. Used from one event loop."""

    config: Config  # once ready, as the platform's plan left it

    @property
    @abc.abstractmethod
    def status(self) -> EngineStatus:
        """How the engine is now."""

    @abc.abstractmethod
    async def wait_ready(self) -> None:
        """Return when requests are served. Raises EngineDead if the engine failed for good."""

    @abc.abstractmethod
    def generate(self, request: EngineRequest) -> AsyncGenerator[RequestDelta, None]:
        """Deltas until one with a finish reason. An async generator: closing it aborts the request.

        `request.request_id` is unique over all requests of the server, those that have ended included.
        Raises the RequestError that the engine refused the request with, and EngineDead. A request that was
        running in several engines when they died ends with finish reason `error`.
        """

    @abc.abstractmethod
    async def abort(self, request_id: str) -> None:
        """End a request with finish reason `abort`. One that is not running is ignored: it may just have ended."""

    @abc.abstractmethod
    async def stats(self) -> EngineStats:
        """The engine's counters; waits for an engine that is loading. Raises EngineDead."""

    @abc.abstractmethod
    async def reset_prefix_cache(self) -> bool:
        """Let no KV block be found by what it holds. False, and nothing changed, while requests own blocks.

        Raises EngineDead, also where the engine is replaced meanwhile: the new one's cache is empty.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of the engine; what still runs for this client is aborted."""


class _Stream:
    """One live request: what was emitted of it, and deltas that its consumer has not taken yet."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.emitted = list(request.output_token_ids)
        self.deaths = 0  # engines that died while they had this request
        self.silent_deaths = 0  # the last of them, in a row, that had given it nothing
        self.answered = False  # by the engine that runs now
        self.submitted = False  # to the engine that runs now
        self.finished = False
        self._deltas: list[RequestDelta] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, delta: RequestDelta) -> None:
        self.answered = True
        self.emitted += delta.token_ids
        self.finished = delta.finish_reason is not None
        self._deltas.append(delta)
        self._wake()

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        self.push(RequestDelta(self.request.request_id, [], reason, error=error))

    def fail(self, error: Exception) -> None:
        self.finished = True
        self._error = error
        self._wake()

    def outlive_engine(self) -> bool:
        """The engine that had this request died. False if that was once too often."""
        self.deaths += 1
        self.silent_deaths = 0 if self.answered else self.silent_deaths + 1
        self.submitted = self.answered = False
        return self.silent_deaths < MAX_DEATHS and self.deaths < MAX_SLOW_DEATHS

    @property
    def is_suspect(self) -> bool:
        """Whether the next death will be taken for its doing."""
        return not self.answered and self.silent_deaths == MAX_DEATHS - 1

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> RequestDelta:
        """What waits, in one: a consumer that lags gets fewer and larger pieces."""
        while not self._deltas:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        waiting, self._deltas = self._deltas, []
        return joined(waiting)

    def resumed(self) -> EngineRequest:
        """The request as another engine has to be given it."""
        return msgspec.structs.replace(self.request, output_token_ids=list(self.emitted))


class RemoteEngineClient(EngineClient):
    """An engine in another process, under the supervisor at `control_endpoint`; it need not be ready yet.

    Made inside a running event loop. Owns `transport`, which is sockets by default.
    """

    def __init__(self, control_endpoint: str, config: Config, transport: Transport | None = None) -> None:
        self.config = config
        self._status = EngineStatus()
        self._changed = asyncio.Event()  # replaced at each change of state
        self._streams: dict[str, _Stream] = {}
        self._on_trial: _Stream | None = None  # a suspect that the engine has, or is about to get
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []
        self._reset_waiters: deque[asyncio.Future[bool]] = deque()  # in the order of the engine's answers
        self._incarnation = 0  # of the engine that `_engine` is connected to
        self._transport = transport or SocketTransport()
        self._engine: Connection | None = None
        self._engine_task: asyncio.Task[None] | None = None
        self._control = self._transport.connect(control_endpoint)
        self._control.send(encode(Hello(self._transport.pid)))
        self._control_task = self._keep(self._follow_supervisor())

    @property
    def status(self) -> EngineStatus:
        return self._status

    async def wait_ready(self) -> None:
        while self._engine is None:
            self._check_alive()
            await self._changed.wait()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestDelta, None]:
        stream = self._open(request)
        try:
            while True:
                delta = await stream.next()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self._close_stream(stream)

    async def abort(self, request_id: str) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None and not stream.finished:
            self._tell_abort(stream)
            stream.end("abort")
            self._end_trial(stream)

    async def stats(self) -> EngineStats:
        self._check_alive()
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        if self._engine is not None and len(self._stats_waiters) == 1:
            self._send(GetStats())
        try:
            return await waiter
        finally:
            if waiter in self._stats_waiters:
                self._stats_waiters.remove(waiter)

    async def reset_prefix_cache(self) -> bool:
        await self.wait_ready()
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._reset_waiters.append(waiter)
        self._send(ResetPrefixCache())
        return await waiter

    async def close(self) -> None:
        for request_id in list(self._streams):
            await self.abort(request_id)
        tasks = [task for task in (self._control_task, self._engine_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._transport.close()

    # --- requests ---

    def _open(self, request: EngineRequest) -> _Stream:
        self._check_alive()
        if request.request_id in self._streams:
            raise InvalidRequest(f"request_id: {request.request_id!r} is already running", param="request_id")
        stream = _Stream(request)
        self._streams[request.request_id] = stream
        self._submit(stream)
        return stream

    def _submit(self, stream: _Stream) -> None:
        """Give a live request to the engine that runs now, if one does; the next engine gets it otherwise."""
        if self._engine is None or stream.finished or stream.submitted or self._on_trial not in (None, stream):
            return
        max_tokens = stream.request.params.max_tokens
        if max_tokens is not None and len(stream.emitted) >= max_tokens:
            stream.end("length")  # only its last word was lost
            return
        if stream.is_suspect:
            self._on_trial = stream
        stream.submitted = True
        self._send(Submit(stream.resumed()))

    def _submit_all(self) -> None:
        """Give the engine a suspect if there is one, and everybody else once there is none."""
        for stream in sorted(self._streams.values(), key=lambda stream: not stream.is_suspect):
            self._submit(stream)

    def _end_trial(self, stream: _Stream) -> None:
        """If `stream` is on trial: the engine has survived it, or it is over."""
        if self._on_trial is stream:
            self._on_trial = None
            self._submit_all()

    def _close_stream(self, stream: _Stream) -> None:
        request_id = stream.request.request_id
        if self._streams.get(request_id) is stream:
            del self._streams[request_id]
            if not stream.finished:
                stream.finished = True
                self._tell_abort(stream)
                self._end_trial(stream)

    def _tell_abort(self, stream: _Stream) -> None:
        if stream.submitted and self._engine is not None:
            self._send(Abort(stream.request.request_id))

    def _check_alive(self) -> None:
        if self._status.state == "failed":
            raise EngineDead(self._status.message)

    def _send(self, message: Submit | Abort | GetStats | ResetPrefixCache) -> None:
        assert self._engine is not None
        self._engine.send(encode(message))

    # --- what the engine says ---

    async def _read_engine(self, engine: Connection) -> None:
        decoder = msgspec.msgpack.Decoder(FromEngine)
        while True:
            message = decoder.decode(await engine.receive())
            if isinstance(message, Deltas):
                self._deliver(message.deltas)
            elif isinstance(message, Rejected):
                self._refuse(message)
            elif isinstance(message, Reset):
                if not (waiter := self._reset_waiters.popleft()).done():
                    waiter.set_result(message.done)
            else:
                self._answer(message)

    def _deliver(self, deltas: list[RequestDelta]) -> None:
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None and not stream.finished:
                stream.push(delta)
                self._end_trial(stream)

    def _refuse(self, rejected: Rejected) -> None:
        stream = self._streams.get(rejected.request_id)
        if stream is None or stream.finished:
            return
        error = request_error(rejected)
        if isinstance(error, QueueFull) and stream.deaths:
            # It was accepted once: that a new engine is given everything at once must not cost it its place.
            stream.submitted = False
            asyncio.get_running_loop().call_later(error.retry_after_s, self._submit, stream)
        else:
            stream.fail(error)
            self._end_trial(stream)

    def _answer(self, message: Stats) -> None:
        waiters, self._stats_waiters = self._stats_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(message.stats)

    # --- what the supervisor says ---

    async def _follow_supervisor(self) -> None:
        decoder = msgspec.msgpack.Decoder(StateChange)
        while True:
            change = decoder.decode(await self._control.receive())
            self._status = change.status
            if self._engine is not None and (change.endpoint is None or change.incarnation != self._incarnation):
                self._lose_engine()
            if change.endpoint is not None and self._engine is None:
                self._take_engine(change, change.endpoint)
            if change.status.state == "failed":
                self._fail_all(EngineDead(change.status.message))
            self._changed.set()
            self._changed = asyncio.Event()

    def _take_engine(self, change: StateChange, endpoint: str) -> None:
        self.config = change.config or self.config
        self._incarnation = change.incarnation
        self._engine = self._transport.connect(endpoint)
        self._engine_task = self._keep(self._read_engine(self._engine))
        self._submit_all()
        if self._stats_waiters:
            self._send(GetStats())
        self._control.send(encode(Hello(self._transport.pid, change.incarnation)))

    def _lose_engine(self) -> None:
        assert self._engine is not None and self._engine_task is not None
        self._engine_task.cancel()
        self._engine.close()
        self._engine = self._engine_task = None
        self._on_trial = None
        self._fail_resets(EngineDead("the engine was replaced meanwhile; the new one's cache is empty"))
        for stream in self._streams.values():
            if stream.submitted and not stream.finished and not stream.outlive_engine():
                stream.end("error", f"{stream.deaths} engines died while they were running this request")
                log.error("request given up", request_id=stream.request.request_id, deaths=stream.deaths)

    def _keep(self, reader: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(reader)
        task.add_done_callback(self._on_reader_end)
        return task

    def _on_reader_end(self, task: asyncio.Task[None]) -> None:
        """A reader ends by being cancelled; if it failed, nobody must wait for what it would have read."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the engine's client failed", exc_info=error)
            self._fail_all(EngineDead(f"the connection to the engine failed: {error}"))

    def _fail_all(self, error: EngineDead) -> None:
        for stream in self._streams.values():
            if not stream.finished:
                stream.fail(error)
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._stats_waiters.clear()
        self._fail_resets(error)

    def _fail_resets(self, error: EngineDead) -> None:
        for waiter in self._reset_waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._reset_waiters.clear()
