"""A server of our own for the time of a measurement, and how long it takes to start."""

from __future__ import annotations

import ctypes
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from core.bench.figures import Figures, spread
from core.errors import CoreError

_POLL_S = 0.01
_STOP_S = 60.0
_HOST = "127.0.0.1"
_STDERR = 2
_PR_SET_PDEATHSIG = 1  # prctl(2)


class ServerDidNotStart(CoreError):
    """`core serve` ended, or took longer than it was given."""


class ServerProcess:
    """A started `core serve`; `started` is when, in seconds of time.perf_counter()."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.port = _free_port()
        self.url = f"http://{_HOST}:{self.port}"
        command = [
            sys.executable,
            "-m",
            "core.cli.main",
            "serve",
            *arguments,
            "--host",
            _HOST,
            "--port",
            str(self.port),
            "--no-log-requests",
        ]
        self.started = time.perf_counter()
        # Its words go to our standard error: standard output is for the figures.
        # It drains and ends when we do, even if we are killed.
        prctl = ctypes.CDLL(None).prctl
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 - one thread, one system call
        )

    @property
    def pid(self) -> int:
        """The process id of the supervisor."""
        return self._process.pid

    def wait_ready(self, timeout: float) -> None:
        """Return when /readyz says 200. Raises ServerDidNotStart."""
        while not self._ready():
            if (status := self._process.poll()) is not None:
                raise ServerDidNotStart(
                    f"`core serve` ended with status {status} before it was ready; its words are above"
                )
            if time.perf_counter() - self.started > timeout:
                raise ServerDidNotStart(f"`core serve` was not ready within {timeout:g} s; give it more with --timeout")
            time.sleep(_POLL_S)

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False  # it does not listen yet
        finally:
            connection.close()

    def first_token(self) -> None:
        """Return when the first chunk of an answer has come. Raises ServerDidNotStart."""
        body = json.dumps({"prompt": "Hello", "max_tokens": 1, "temperature": 0, "ignore_eos": True, "stream": True})
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=600)
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200 or not response.readline().startswith(b"data: {"):
                raise ServerDidNotStart(f"{self.url} answered {response.status} to the first request")
        finally:
            connection.close()

    def stop(self) -> None:
        """End it, gently at first."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def served(arguments: Sequence[str], timeout: float) -> Iterator[ServerProcess]:
    """A server that is ready, ended afterwards. Raises ServerDidNotStart."""
    process = ServerProcess(arguments)
    try:
        process.wait_ready(timeout)
        yield process
    finally:
        process.stop()


def startup(arguments: Sequence[str], timeout: float) -> tuple[float, float]:
    """Seconds from starting the command to ready, and to the first token of the first answer."""
    process = ServerProcess(arguments)
    try:
        process.wait_ready(timeout)
        ready = time.perf_counter()
        process.first_token()
        return ready - process.started, time.perf_counter() - process.started
    finally:
        process.stop()


def startup_figures(samples: Sequence[tuple[float, float]]) -> Figures:
    """The spread of both times."""
    ready = spread("ready", [sample[0] for sample in samples])
    return {"runs": len(samples), **ready, **spread("first_token", [sample[1] for sample in samples])}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
