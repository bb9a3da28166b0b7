"""`core serve` before and around the processes it starts."""

from __future__ import annotations

import re
import socket
import stat
import time
from pathlib import Path

import pytest
from fake_engine import CONFIG

from core.cli import serve
from core.cli.listen import Address, listen
from core.cli.main import main
from core.engine.messages import EngineStatus, Planned
from core.errors import ConfigError
from core.platform import Override
from core.server.options import ServerOptions


def test_a_port_in_use_is_known_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "/no/such/model", "--port", str(port)]) == 1
    shown = capsys.readouterr().err
    assert f"error: --port: 127.0.0.1:{port} is in use" in shown and "no/such/model" not in shown


@pytest.mark.parametrize(
    ("host", "message"), [("192.0.2.1", "--host: '192.0.2.1' is not an address"), ("no such host", "--host: 'no such")]
)
def test_an_address_of_another_machine_is_refused(host: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), listen(ServerOptions(host=host, port=0)):
        pass


@pytest.mark.parametrize(("host", "reachable"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_the_url_is_one_that_a_client_here_can_use(host: str, reachable: str) -> None:
    with listen(ServerOptions(host=host, port=0)) as listener:
        port = listener.getsockname()[1]
        address = Address.of(listener)
        assert (address.url, address.is_public) == (f"http://{reachable}:{port}", host != reachable)
        socket.create_connection((reachable, port)).close()


def test_a_unix_socket_is_for_this_user_alone_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    options = ServerOptions(uds=str(path))
    with listen(options) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not Address.of(listener).is_public
        assert (
            Address.of(listener, tls=True, root_path="/llm").curl == f"curl --unix-socket {path} https://localhost/llm"
        )
        with pytest.raises(ConfigError, match=r"--uds: .*something listens"), listen(options):
            pass
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with listen(options) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.accept()[0].close()


def test_what_lies_at_the_path_of_a_unix_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="--uds"), listen(ServerOptions(uds=str(path))):
        pass
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ssl-keyfile", "k"], "--ssl-keyfile: it needs --ssl-certfile"),
        (["--ssl-certfile", "/no/such"], "--ssl-certfile: cannot use '/no/such'"),
        (["--api-key-file", "/no/such"], "--api-key-file: cannot read '/no/such'"),
        (["--api-key", ""], "--api-key: key 1 is not"),
        (["--allowed-origins", "*", "--allow-credentials"], "--allowed-origins: '[*]' with --allow-credentials"),
        (["--root-path", "llm"], "--root-path: "),
    ],
)
def test_what_the_frontends_could_not_use_is_known_before_the_model_is(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "/no/such/model", "--port", "0", *words]) == 1
    assert re.match(f"error: {message}", capsys.readouterr().err.splitlines()[-1])


def test_a_server_that_others_reach_is_warned_of_having_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    for words, warned in (([], True), (["--api-key", "k"], False), (["--host", "127.0.0.1"], False)):
        assert main(["serve", "/no/such/model", "--host", "0.0.0.0", "--port", "0", *words]) == 1
        assert ("warning: whoever reaches" in capsys.readouterr().err) == warned


def test_an_unknown_parser_is_known_before_the_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "/no/such/model", "--port", "0", "--tool-call-parser", "herms"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --tool-call-parser: there is no parser 'herms'; did you mean 'hermes'?")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--api-server-count", "0"], "--api-server-count: .*>= 1"),
        (["--shutdown-timeout", "-1"], "--shutdown-timeout: .*>= 0"),
        (["--prot", "1"], "--prot: .*'--port'"),
        (["--max-num-seq", "1"], "--max-num-seq: .*'--max-num-seqs'"),
    ],
)
def test_wrong_flags_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{message}", line)


def test_the_start_up_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = serve.Display(
        Address("http://127.0.0.1:1", "curl http://127.0.0.1:1", False), "the-model", time.monotonic()
    )
    for percent in (0, 50, 100):
        display.status(EngineStatus(state="loading", stage="loading weights", progress=percent / 100))
    display.status(EngineStatus(state="ready"))
    override = Override(option="--dtype", value="float32", reason="no bfloat16 units")
    sizes = {
        "weights": 3 << 20,
        "activations": 1 << 20,
        "inputs": 0,
        "kv_cache": 2 << 30,
        "total": 3 << 30,
        "free": 9 << 30,
    }
    display.planned(Planned(CONFIG, (override,), {**sizes, "num_blocks": 101, "block_size": 16}))
    display.serving()
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("loading weights") == 1
    assert "--dtype = float32: no bfloat16 units" in lines
    assert any("weights 3.0 MiB, KV cache of 1,600 tokens 2,048.0 MiB" in line for line in lines)
    assert any(" s: http://127.0.0.1:1/v1" in line for line in lines)
    assert any("curl http://127.0.0.1:1/v1/chat/completions" in line for line in lines)
