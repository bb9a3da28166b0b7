"""The frontend's process: an inherited socket, an engine that is not there yet, SIGTERM."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.cli.listen import listen
from core.server.options import ServerOptions

_FRONTEND = """
import json
import sys
sys.path.insert(0, sys.argv[1])
from fake_server import make_config
from core.server.app import run_frontend
from core.server.options import ServerOptions
options = ServerOptions(**json.loads(sys.argv[5]))
run_frontend(make_config(tokenizer_path=sys.argv[2]), options, int(sys.argv[3]), "ipc://" + sys.argv[4])
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.fixture
def start(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a frontend on a listening socket, with options of its own."""
    started: list[subprocess.Popen[str]] = []

    def start_on(listener: socket.socket, **options: str) -> subprocess.Popen[str]:
        support = str(Path(__file__).parents[1] / "support")
        arguments = [support, str(tiny_model("llama")), str(listener.fileno()), str(tmp_path / "control")]
        process = subprocess.Popen(
            [sys.executable, "-c", _FRONTEND, *arguments, json.dumps(options)],
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_on
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def frontend(start: Callable[..., subprocess.Popen[str]]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield start(listener), listener.getsockname()[1]


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


# --- what it listens on --------------------------------------------------------------------------------------

_CONFIGURATION = "[req]\ndistinguished_name = dn\nx509_extensions = own\n[dn]\n[own]\nsubjectAltName = DNS:localhost\n"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate for localhost that vouches for itself, and its key."""
    certfile, keyfile, configuration = (tmp_path / name for name in ("cert.pem", "key.pem", "openssl.cnf"))
    configuration.write_text(_CONFIGURATION)
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    files = ["-config", str(configuration), "-keyout", str(keyfile), "-out", str(certfile)]
    subprocess.run([*command, "-subj", "/CN=localhost", *files], check=True, capture_output=True)
    return str(certfile), str(keyfile)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def alive(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def test_https(start: Callable[..., subprocess.Popen[str]], certificate: tuple[str, str]) -> None:
    certfile, keyfile = certificate
    trusting = ssl.create_default_context(cafile=certfile)
    with listen(ServerOptions(port=0)) as listener:
        process = start(listener, ssl_certfile=certfile, ssl_keyfile=keyfile)
        port = listener.getsockname()[1]
        assert alive(http.client.HTTPSConnection("localhost", port, timeout=30, context=trusting))
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            get(port, "/livez")  # without TLS
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_clients_show_certificates_where_they_must(
    start: Callable[..., subprocess.Popen[str]], certificate: tuple[str, str]
) -> None:
    certfile, keyfile = certificate
    known, unknown = (ssl.create_default_context(cafile=certfile) for _ in range(2))
    known.load_cert_chain(certfile, keyfile)
    with listen(ServerOptions(port=0)) as listener:
        start(listener, ssl_certfile=certfile, ssl_keyfile=keyfile, ssl_ca_certs=certfile)
        port = listener.getsockname()[1]
        assert alive(http.client.HTTPSConnection("localhost", port, timeout=30, context=known))
        with pytest.raises((ssl.SSLError, http.client.HTTPException, ConnectionError)):
            alive(http.client.HTTPSConnection("localhost", port, timeout=30, context=unknown))


def test_a_unix_socket(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with listen(ServerOptions(uds=path)) as listener:
        process = start(listener)
        assert alive(UnixConnection(path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
