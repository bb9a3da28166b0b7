"""What runs in a child process: the engine, or a frontend.

`python -m core.engine.process` reads its `Birth` from stdin. A child ignores SIGINT, and an engine SIGTERM too, which
service managers send to every process of a service: the supervisor decides what happens. It never outlives its parent.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from core import logs
from core.engine.loop import EngineLoop
from core.engine.messages import (
    LENGTH,
    Birth,
    EngineSpec,
    FrontendSpec,
    Progress,
    Ready,
    Report,
    failed,
    frame,
    load_name,
    planned,
)
from core.engine.sockets import SocketMailbox
from core.platform import MemoryPlan, Plan

if TYPE_CHECKING:
    from core.engine.core import Engine

_PR_SET_PDEATHSIG = 1  # prctl(2)


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


def run_engine(spec: EngineSpec, reports: Reports) -> None:
    """Build the engine, say so, and serve until stdin is closed."""
    engine: Engine = load_name(spec.factory)(spec.config, spec.chosen, reports.progress, reports.planned)
    with SocketMailbox.bind(spec.endpoint, sys.stdin.fileno()) as mailbox:
        reports.send(Ready())
        EngineLoop(engine, mailbox).run()
    engine.shutdown()


def run_frontend(spec: FrontendSpec) -> None:
    """Call the frontend's entry; it returns when it has drained after SIGTERM."""
    if spec.num_frontends > 1:
        # prometheus_client reads it when the entry imports it, and counts into files there, which all frontends read.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.path.dirname(spec.control_endpoint.removeprefix("ipc://"))
    options = msgspec.msgpack.decode(spec.options, type=load_name(spec.options_type))
    load_name(spec.entry)(spec.config, options, spec.listen_fd, spec.control_endpoint)


def main() -> int:
    """Run the process that stdin describes. Its exit status is 1 when it failed, with the reason reported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    birth = read_birth(sys.stdin.buffer)
    die_with(birth.parent_pid)
    spec, reports = birth.spec, Reports(birth.report_fd)
    try:
        if isinstance(spec, EngineSpec):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            logs.setup("engine")
            run_engine(spec, reports)
        else:
            logs.setup("frontend")
            run_frontend(spec)
    except Exception as error:
        report = failed(error)
        if not report.expected or logging.getLogger("core").isEnabledFor(logging.DEBUG):
            logging.getLogger("core.process").error("failed", exc_info=error)
        reports.send(report)
        logging.shutdown()
        # At once: threads and devices that failed may never let go, and requests wait for the next engine.
        os._exit(1)
    return 0


def read_birth(stream: BinaryIO) -> Birth:
    """The framed `Birth` at the start of `stream`."""
    (length,) = LENGTH.unpack(stream.read(LENGTH.size))
    return msgspec.msgpack.decode(stream.read(length), type=Birth)


def die_with(parent_pid: int) -> None:
    """Be killed when the parent ends, however it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before that
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
