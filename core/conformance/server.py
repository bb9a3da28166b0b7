"""The real `core serve` in processes of its own, on a free port of this machine, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core.conformance.failures import Broken, expect
from core.conformance.limits import PATIENCE_S

_READY = re.compile(r"^ready in .*?: (http://\S+)/v1", re.MULTILINE)
_POLL_S = 0.02
_LOG_TAIL = 400


@dataclass
class Server:
    """A server that was started; `url` once it is ready."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = field(default="", init=False)

    def wait_ready(self) -> None:
        """Raises Broken, with the end of its log, where it ends or takes longer than PATIENCE_S."""
        until(self._announced, f"the server is not ready: {self._tail()}")

    def _announced(self) -> bool:
        text = self.log.read_text(errors="replace")
        expect(self.process.poll() is None, f"the server ended with status {self.process.poll()}: {self._tail()}")
        found = _READY.search(text)
        self.url = found[1] if found else ""
        return found is not None

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-_LOG_TAIL:]

    # --- its processes ---

    def children(self) -> list[int]:
        """Process ids below the supervisor."""
        return descendants(self.process.pid)

    def engine(self) -> int | None:
        """The engine's process: the one that has loaded torch. None while there is none."""
        return next((pid for pid in self.children() if "libtorch" in _text(f"/proc/{pid}/maps")), None)

    # --- requests ---

    def complete(self, **body: Any) -> tuple[int, Any]:
        """POST /v1/completions: status and JSON."""
        connection = self._connect()
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def stream(self, **body: Any) -> Iterator[str]:
        """The pieces of a streamed completion, as they come. Raises Broken for a stream that breaks off."""
        connection = self._connect()
        with contextlib.closing(connection):
            content = json.dumps({**body, "stream": True})
            connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            expect(response.status == 200, f"a streamed completion gave status {response.status}")
            for line in response:
                if line == b"data: [DONE]\n":
                    return
                if line.startswith(b"data: "):
                    yield json.loads(line[len(b"data: ") :])["choices"][0]["text"]
            raise Broken("a stream broke off before its end")

    def figure(self, name: str) -> float | None:
        """One of /metrics, `core:` left out; None while the engine does not answer."""
        connection = self._connect()
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        found = re.search(rf'^core:{name}{{model_name="[^"]*"}} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else None

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE_S)


@contextlib.contextmanager
def serve(arguments: list[str], log: Path, environment: dict[str, str]) -> Iterator[Server]:
    """`core serve` with `arguments`, ready; killed in the end if it has not ended by then."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "core.cli.main", "serve", *arguments, "--host", "127.0.0.1", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env={**environment, "PYTHONPATH": path},
        )
    server = Server(process, log)
    try:
        server.wait_ready()
        yield server
    finally:
        for pid in [*server.children(), process.pid] if process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], bool], otherwise: str, seconds: float = PATIENCE_S) -> None:
    """Wait for `condition`. Raises Broken with `otherwise` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Broken(f"{otherwise} (after {seconds:g} s)")
        time.sleep(_POLL_S)


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, as the kernel knows them."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return []
    children = [int(child) for task in tasks for child in _text(f"/proc/{pid}/task/{task}/children").split()]
    return [*children, *(below for child in children for below in descendants(child))]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    stat = _text(f"/proc/{pid}/stat")
    return bool(stat) and stat.rpartition(")")[2].split()[0] != "Z"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has just ended
        return ""
