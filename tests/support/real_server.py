"""The real `core serve` in processes of its own, on a free port, with a temporary directory that it must leave empty."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

CORE = str(Path(sys.executable).with_name("core"))
#: Where other programs run too, several threads that wait for each other at every op are slower than one.
ONE_THREAD = ("--platform-opt", "cpu.threads=1")
_READY = re.compile(r"^ready in .*?: (http://\S+)/v1", re.MULTILINE)
_SECONDS = 120.0


@dataclass
class RealServer:
    """A `core serve` that is ready, or has ended."""

    process: subprocess.Popen[bytes]
    directory: Path  # its TMPDIR
    log: Path  # its standard error
    url: str = ""
    model: str = ""

    def wait_ready(self) -> None:
        def announced() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return _READY.search(self.log.read_text()) is not None

        until(announced)
        found = _READY.search(self.log.read_text())
        assert found is not None
        self.url = found[1]
        self.model = self.get("/v1/models")[1]["data"][0]["id"]

    def tree(self) -> list[psutil.Process]:
        """The supervisor, and all processes below it."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def engine(self) -> psutil.Process | None:
        """The process that has loaded torch, which no other one may; None while there is none."""
        found = [process for process in self.tree() if "libtorch" in _maps(process.pid)]
        assert len(found) <= 1
        return found[0] if found else None

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON."""
        status, _, body = self.send("GET", path)
        return status, json.loads(body)

    def complete(self, prompt: Any = "Hello", **fields: Any) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of a completion."""
        body = json.dumps({"prompt": prompt, **fields})
        status, headers, answer = self.send("POST", "/v1/completions", body)
        return status, headers, json.loads(answer)

    def send(self, method: str, path: str, body: str | bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        connection = self.connect()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A streamed request whose headers, and so its first token, have come."""
        connection = self.connect()
        connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return connection, response

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=_SECONDS)

    def figure(self, name: str) -> float | None:
        """One of the engine's own metrics, `core:` left out; None while the engine does not answer."""
        _, _, body = self.send("GET", "/metrics")
        found = re.search(rf'^core:{name}{{model_name="[^"]*"}} (\S+)$', body.decode(), re.MULTILINE)
        return float(found[1]) if found else None

    def end(self) -> None:
        """SIGTERM; the server must end well and leave nothing behind."""
        everyone = self.tree()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(_SECONDS) == 0, self.log.read_text()
        assert [process.pid for process in everyone if process.is_running()] == []
        assert list(self.directory.iterdir()) == []
        assert "Traceback" not in self.log.read_text()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """What a stream sends, to its [DONE]."""
    for line in response:
        if line.startswith(b"data: "):
            if line == b"data: [DONE]\n":
                return
            yield json.loads(line[6:])
    raise AssertionError("the stream ended without [DONE]")


def until(condition: Callable[[], bool], seconds: float = _SECONDS) -> None:
    """Wait for what must happen within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def real_server(*arguments: str, command: str = CORE, port: int = 0) -> Iterator[RealServer]:
    """A server started by `command`, ended with `end` unless the test has ended it. Port 0 is any free one."""
    with tempfile.TemporaryDirectory(prefix="t") as base:
        directory, log = Path(base, "tmp"), Path(base, "log")
        directory.mkdir()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [command, "serve", *arguments, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stderr=output,
                env={**os.environ, "TMPDIR": str(directory)},
            )
        server = RealServer(process, directory, log)
        try:
            server.wait_ready()
            yield server
            if process.poll() is None:
                server.end()
        finally:
            process.kill()
            process.wait()


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # it has just ended
        return ""
