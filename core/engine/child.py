"""A child as its parent sees it: started with a spec, heard through its reports, ended for certain."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import Protocol

import msgspec

from core.engine.messages import LENGTH, Birth, Failed, Report, Spec, frame

#: The last reports of a child are in the pipe when it ends; only a grandchild that holds the pipe keeps it open.
_LAST_REPORTS_S = 1.0

OnReport = Callable[[Report], None]


class Child(abc.ABC):
    """One child. Whoever starts it awaits `ended` or `stop`."""

    @property
    @abc.abstractmethod
    def pid(self) -> int:
        """The process id."""

    @property
    @abc.abstractmethod
    def failure(self) -> Failed | None:
        """What the child said of its own end, if it did."""

    @abc.abstractmethod
    async def ended(self) -> str:
        """Wait for the end; how and why, for people, as in `was killed by SIGSEGV`."""

    @abc.abstractmethod
    def terminate(self) -> None:
        """Ask it to end by SIGTERM."""

    @abc.abstractmethod
    async def stop(self, grace_s: float) -> None:
        """Ask an engine to end, and kill the child if it has not done so after `grace_s`."""


class StartChild(Protocol):
    """Starts a child."""

    async def __call__(self, spec: Spec, on_report: OnReport, *, fds: tuple[int, ...] = ()) -> Child:
        """Run `spec` in a child that also inherits `fds`; `on_report` is called with each report as it comes."""
        ...


class ChildProcess(Child):
    """One process, made by `start`."""

    def __init__(self, process: Process, reports: asyncio.StreamReader, on_report: OnReport) -> None:
        self._process = process
        self._on_report = on_report
        self._failure: Failed | None = None
        self._reading = asyncio.create_task(self._read(reports))

    @classmethod
    async def start(cls, spec: Spec, on_report: OnReport, *, fds: tuple[int, ...] = ()) -> ChildProcess:
        """A `StartChild`."""
        read_fd, write_fd = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "core.engine.process"),
                stdin=PIPE,
                pass_fds=(write_fd, *fds),
                env=_environment(),
                process_group=0,  # what a terminal or a shell sends to all is for the parent alone
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        child = cls(process, await _reader(read_fd), on_report)
        try:
            await child._tell(Birth(parent_pid=os.getpid(), report_fd=write_fd, spec=spec))
        except BaseException:
            await child.stop(0.0)
            raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def failure(self) -> Failed | None:
        return self._failure

    async def ended(self) -> str:
        code = await self._process.wait()
        await asyncio.wait([self._reading], timeout=_LAST_REPORTS_S)
        self._reading.cancel()
        if self._failure is not None:
            return f"failed: {self._failure.message}"
        return f"ended with status {code}" if code >= 0 else _killed_by(-code)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    async def stop(self, grace_s: float) -> None:
        """Closing its stdin is what asks an engine to end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self._signal(signal.SIGKILL)
        await self.ended()

    async def _tell(self, birth: Birth) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it has ended already, which `ended` tells
            self._process.stdin.write(frame(birth))
            await self._process.stdin.drain()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            self._process.send_signal(number)

    async def _read(self, reports: asyncio.StreamReader) -> None:
        decoder = msgspec.msgpack.Decoder[Report](Report)
        with contextlib.suppress(asyncio.IncompleteReadError):  # the end of the child, in mid-word or not
            while True:
                (length,) = LENGTH.unpack(await reports.readexactly(LENGTH.size))
                report = decoder.decode(await reports.readexactly(length))
                if isinstance(report, Failed):
                    self._failure = report
                self._on_report(report)


def _killed_by(number: int) -> str:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    hint = "; if nobody sent it, the kernel did because memory ran out" if number == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _environment() -> dict[str, str]:
    """This process's environment, with its own import path, so that a child finds what its parent found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}


async def _reader(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(fd, "rb"))
    return reader
