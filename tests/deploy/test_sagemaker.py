"""The SageMaker image's entry point, by a client that acts as SageMaker's runtime.

Its contract: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_ports
from real_server import events, until

pytestmark = pytest.mark.deploy

ENTRYPOINT = Path(__file__).parents[2] / "examples" / "online_serving" / "sagemaker-entrypoint.sh"


def shown(tmp_path: Path, **environment: str) -> list[str]:
    """The command that the entry point runs, by a `core` that prints its arguments."""
    (tmp_path / "core").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "core").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    return subprocess.run(
        [str(ENTRYPOINT), "serve"], env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_variables_become_flags(tmp_path: Path) -> None:
    arguments = shown(
        tmp_path,
        SM_CORE_MODEL="org/name",
        SM_CORE_MAX_MODEL_LEN="4096",
        SM_CORE_ENABLE_PREFIX_CACHING="false",
        SM_CORE_LOG_REQUESTS="true",
        SM_CORE_SERVED_MODEL_NAME="a name; $(with) `signs`",
        SM_OTHER="no",
    )
    assert arguments[:2] == ["serve", "org/name"]
    assert sorted(arguments[2:-4]) == [
        "--log-requests", "--max-model-len=4096", "--no-enable-prefix-caching",
        "--served-model-name=a name; $(with) `signs`",
    ]  # fmt: skip
    assert arguments[-4:] == ["--host", "0.0.0.0", "--port", "8080"]


def test_without_variables_the_model_is_where_sagemaker_puts_it(tmp_path: Path) -> None:
    assert shown(tmp_path) == ["serve", "/opt/ml/model", "--host", "0.0.0.0", "--port", "8080"]


class Runtime:
    """What SageMaker does with a container."""

    def __init__(self, port: int) -> None:
        self._port = port

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, timeout: float = 60
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        # The server closes it after its answer, which every test reads to the end.
        try:
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            return connection.getresponse()
        except OSError:
            connection.close()
            raise

    def healthy(self) -> bool:
        """Within the two seconds that SageMaker waits; it asks again while a container starts."""
        try:
            answer = self.request("GET", "/ping", timeout=2)
            answer.read()
            return answer.status == 200
        except (ConnectionError, TimeoutError):
            return False

    def invoke(self, **body: object) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "trace=1"}
        return self.request("POST", "/invocations", json.dumps(body).encode(), headers)


@pytest.fixture(scope="module")
def container(sim_arguments: tuple[str, ...]) -> Iterator[tuple[subprocess.Popen[bytes], Runtime]]:
    """The entry point as the image runs it, but for the port and the simulated device."""
    model, *options = sim_arguments
    given = dict(zip(options[::2], options[1::2], strict=True))
    env = {f"SM_CORE_{flag.removeprefix('--').replace('-', '_').upper()}": value for flag, value in given.items()}
    (port,) = free_ports(1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [str(ENTRYPOINT), "serve"],
        env={**os.environ, **env, "PATH": path, "SM_CORE_MODEL": model, "SAGEMAKER_BIND_TO_PORT": str(port)},
        stderr=subprocess.DEVNULL,
    )
    try:
        runtime = Runtime(port)
        until(runtime.healthy)
        yield process, runtime
    finally:
        process.terminate()
        process.wait(60)


def test_it_is_invoked(container: tuple[subprocess.Popen[bytes], Runtime]) -> None:
    _, runtime = container
    answer = runtime.invoke(prompt="Hello", max_tokens=3)
    assert answer.status == 200
    assert json.load(answer)["usage"]["completion_tokens"] == 3
    answer = runtime.invoke(messages=[{"role": "user", "content": "Hello"}], max_tokens=3)
    assert answer.status == 200 and json.load(answer)["object"] == "chat.completion"
    answer = runtime.invoke(nothing=1)
    assert answer.status == 400 and "messages" in json.load(answer)["error"]["message"]


def test_it_streams_as_invoke_endpoint_with_response_stream_wants(
    container: tuple[subprocess.Popen[bytes], Runtime],
) -> None:
    _, runtime = container
    answer = runtime.invoke(prompt="Hello", max_tokens=5, stream=True, stream_options={"include_usage": True})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert list(events(answer))[-1]["usage"]["completion_tokens"] == 5
    answer.close()


def test_sigterm_lets_what_runs_finish(container: tuple[subprocess.Popen[bytes], Runtime]) -> None:
    process, runtime = container
    answer = runtime.invoke(prompt="Hello", max_tokens=40, stream=True, stream_options={"include_usage": True})
    process.send_signal(signal.SIGTERM)
    until(lambda: not runtime.healthy())
    assert list(events(answer))[-1]["usage"]["completion_tokens"] == 40
    answer.close()
    assert process.wait(30) == 0
