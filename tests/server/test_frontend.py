"""The frontend's process: an inherited socket, an engine that is not there yet, SIGTERM."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_FRONTEND = """
import sys
sys.path.insert(0, sys.argv[1])
from fake_server import make_config
from core.server.app import run_frontend
from core.server.options import ServerOptions
run_frontend(make_config(tokenizer_path=sys.argv[2]), ServerOptions(), int(sys.argv[3]), "ipc://" + sys.argv[4])
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.fixture
def frontend(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port."""
    support = str(Path(__file__).parents[1] / "support")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        arguments = [support, str(tiny_model("llama")), str(fd), str(tmp_path / "control")]
        process = subprocess.Popen(
            [sys.executable, "-c", _FRONTEND, *arguments], pass_fds=[fd], stdout=subprocess.PIPE, text=True
        )
        yield process, listener.getsockname()[1]
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def get(port: int, path: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_serves_before_the_engine_and_ends_when_told(frontend: tuple[subprocess.Popen[str], int]) -> None:
    process, port = frontend
    status, body = get(port, "/readyz")
    assert (status, body["state"]) == (503, "starting")
    assert get(port, "/v1/models")[1]["data"][0]["id"] == "fake/model"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stdout is not None and process.stdout.read() == "[]\n"


def test_another_sigterm_changes_nothing(frontend: tuple[subprocess.Popen[str], int]) -> None:
    """The running request is answered, new ones are refused."""
    process, port = frontend
    get(port, "/livez")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")  # and no more
        time.sleep(0.2)  # the server has begun to read it
        process.send_signal(signal.SIGTERM)
        while (state := get(port, "/readyz")[1]["state"]) != "draining":
            assert state == "starting"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert get(port, "/readyz")[0] == 503
        client.sendall(b" " * 99)
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert process.wait(20) == 0
