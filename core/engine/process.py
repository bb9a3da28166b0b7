"""What runs in a child process: the engine's loop around ZeroMQ, and the way into a frontend.

`python -m core.engine.process` reads its `Spec` from stdin. A child ignores SIGINT, and an engine SIGTERM too, which
service managers send to every process of a service: the supervisor decides what happens. It never outlives its parent.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec
import zmq

from core import logs
from core.engine.messages import (
    LENGTH,
    Abort,
    Deltas,
    EngineSpec,
    Failed,
    FrontendSpec,
    Progress,
    Ready,
    Report,
    Spec,
    Stats,
    Submit,
    ToEngine,
    encode,
    frame,
    load_name,
    planned,
    rejection,
)
from core.errors import CoreError, RequestError
from core.platform import MemoryPlan, Plan
from core.types import RequestDelta

if TYPE_CHECKING:
    from core.engine.core import Engine

_PR_SET_PDEATHSIG = 1  # prctl(2)


class EngineLoop:
    """Takes in what frontends send, steps the engine, and sends each frontend one message with all of its deltas.

    `socket` is a ROUTER with ROUTER_MANDATORY, so that sending to a frontend that has gone fails: its requests are
    aborted then. The loop ends when the other end of `stop_fd` is closed.
    """

    def __init__(self, engine: Engine, socket: zmq.Socket[bytes], stop_fd: int) -> None:
        self._engine = engine
        self._socket = socket
        self._stop_fd = stop_fd
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(stop_fd, zmq.POLLIN)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._owners: dict[str, bytes] = {}  # request id -> its frontend

    def run(self) -> None:
        """Serve until stopped. What the engine raises here ends the process."""
        while self._receive():
            if self._patience_ms() == 0:
                self._deliver(self._engine.step())

    def _receive(self) -> bool:
        """Take in all that has come, waiting for it where there is nothing else to do. False: stop."""
        ready: dict[Any, int] = dict(self._poller.poll(self._patience_ms()))
        if self._stop_fd in ready:
            return False
        if self._socket in ready:
            while self._socket.poll(0):
                frontend, body = self._socket.recv_multipart()
                self._handle(frontend, self._decoder.decode(body))
        return True

    def _patience_ms(self) -> int | None:
        """How long there is nothing to do if nothing comes; 0: a step is due; None: for ever."""
        if self._engine.has_work():
            return 0
        deadline = self._engine.next_deadline()
        return None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000))

    def _handle(self, frontend: bytes, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._add(frontend, message)
        elif isinstance(message, Abort):
            if self._owners.get(message.request_id) == frontend:
                del self._owners[message.request_id]
                self._engine.abort(message.request_id)
        else:
            self._send(frontend, Stats(self._engine.stats()))

    def _add(self, frontend: bytes, message: Submit) -> None:
        request_id = message.request.request_id
        try:
            self._engine.add(message.request)
        except RequestError as error:
            self._send(frontend, rejection(request_id, error))
        else:
            self._owners[request_id] = frontend

    def _deliver(self, deltas: list[RequestDelta]) -> None:
        batches: dict[bytes, list[RequestDelta]] = {}
        for delta in deltas:
            if delta.finish_reason is None:
                frontend = self._owners.get(delta.request_id)
            else:
                frontend = self._owners.pop(delta.request_id, None)
            if frontend is not None:  # None: aborted while the step was running
                batches.setdefault(frontend, []).append(delta)
        for frontend, batch in batches.items():
            self._send(frontend, Deltas(batch))

    def _send(self, frontend: bytes, message: msgspec.Struct) -> None:
        try:
            self._socket.send_multipart((frontend, encode(message)))
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(frontend)

    def _forget(self, frontend: bytes) -> None:
        """Abort the requests of a frontend that has gone."""
        for request_id in [name for name, owner in self._owners.items() if owner == frontend]:
            del self._owners[request_id]
            self._engine.abort(request_id)


def bind_private(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Bind an `ipc://` endpoint that only this user may connect to, and let nothing queued there be dropped."""
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(endpoint)
    os.chmod(endpoint.removeprefix("ipc://"), 0o600)


# --- the child's life ----------------------------------------------------------------------------------------


class Reports:
    """The pipe to the supervisor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = Progress("", 0.0)

    def send(self, report: Report) -> None:
        """Write one report, however long it is."""
        data = frame(report)
        while data:
            data = data[os.write(self._fd, data) :]

    def planned(self, plan: Plan, memory_plan: MemoryPlan) -> None:
        """Report what the platform decided, before anything is loaded."""
        self.send(planned(plan, memory_plan))

    def progress(self, stage: str, fraction: float) -> None:
        """Report a step of the start-up, if it is a hundredth or more further than the last that was reported."""
        if stage != self._last.stage or fraction >= self._last.fraction + 0.01:
            self._last = Progress(stage, fraction)
            self.send(self._last)


def run_engine(spec: EngineSpec) -> None:
    """Build the engine, say so, and serve until stdin is closed."""

    reports = Reports(spec.report_fd)
    engine: Engine = load_name(spec.factory)(spec.config, spec.chosen, reports.progress, reports.planned)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        bind_private(socket, spec.endpoint)
        reports.send(Ready())
        EngineLoop(engine, socket, sys.stdin.fileno()).run()
    engine.shutdown()


def run_frontend(spec: FrontendSpec) -> None:
    """Call the frontend's entry; it returns when it has drained after SIGTERM."""
    options = msgspec.msgpack.decode(spec.options, type=load_name(spec.options_type))
    load_name(spec.entry)(spec.config, options, spec.listen_fd, spec.control_endpoint)


def main() -> int:
    """Run the process that stdin describes. Its exit status is 1 when it failed, with the reason reported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = read_spec(sys.stdin.buffer)
    die_with(spec.parent_pid)
    try:
        if isinstance(spec, EngineSpec):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            logs.setup("engine")
            run_engine(spec)
        else:
            logs.setup("frontend")
            run_frontend(spec)
    except Exception as error:
        expected = isinstance(error, CoreError)
        if not expected or logging.getLogger("core").isEnabledFor(logging.DEBUG):
            logging.getLogger("core.process").error("failed", exc_info=error)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        Reports(spec.report_fd).send(Failed(message, expected))
        logging.shutdown()
        # At once: threads and devices that failed may never let go, and requests wait for the next engine.
        os._exit(1)
    return 0


def read_spec(stream: BinaryIO) -> Spec:
    """The framed `Spec` at the start of `stream`."""
    (length,) = LENGTH.unpack(stream.read(LENGTH.size))
    return cast("Spec", msgspec.msgpack.decode(stream.read(length), type=Spec))


def die_with(parent_pid: int) -> None:
    """Be killed when the parent ends, however it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before that
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
