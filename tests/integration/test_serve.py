"""`core serve` with the demo model, as its clients and operators see it."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from anthropic_sdk import AnthropicSDK
from openai_sdk import OpenAISDK
from real_server import CORE, RealServer, events, until

pytestmark = pytest.mark.slow


def core(*arguments: str, stdin: str = "") -> str:
    """What a command prints."""
    return subprocess.run([CORE, *arguments], input=stdin, capture_output=True, text=True, check=True).stdout


class TestOpenAISDK(OpenAISDK):
    @pytest.fixture
    def base_url(self, demo_server: RealServer) -> str:
        return f"{demo_server.url}/v1"


class TestAnthropicSDK(AnthropicSDK):
    @pytest.fixture
    def root_url(self, demo_server: RealServer) -> str:
        return demo_server.url


# --- what is refused -----------------------------------------------------------------------------------------

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("route", "body", "status", "param"),
    [
        (COMPLETIONS, b'{"prompt": ""}', 400, "prompt"),
        (COMPLETIONS, b'{"prompt": []}', 400, "prompt"),
        (COMPLETIONS, b'{"prompt": "%s"}' % (b"word " * 1100), 400, "prompt"),
        (COMPLETIONS, b'{"prompt": "%s"}' % (b"x" * 4_000_000), 400, "prompt"),
        (COMPLETIONS, b'{"prompt": [1, 49152]}', 400, "prompt"),
        (COMPLETIONS, b'{"prompt": [-1]}', 400, "prompt"),
        (COMPLETIONS, b'{"prompt": [1, 99999999999999999999]}', 400, "prompt[1]"),
        (COMPLETIONS, b'{"prompt": {"text": "a"}}', 400, "prompt"),
        (COMPLETIONS, b"{}", 400, "prompt"),
        (COMPLETIONS, b'{"prompt": "a", "model": "gpt-4"}', 404, "model"),
        (COMPLETIONS, b'{"prompt": "a", "temprature": 1}', 400, "temprature"),
        (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
        (COMPLETIONS, b'{"prompt": "a", "temperature": "hot"}', 400, "temperature"),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": -1}', 400, "max_tokens"),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": 1024}', 400, "max_tokens"),
        (COMPLETIONS, b'{"prompt": "a", "stop": ""}', 400, "stop"),
        (COMPLETIONS, b'{"prompt": "a", "stop": ["b", ""]}', 400, "stop"),
        (COMPLETIONS, b'{"prompt": "a", "stop_token_ids": [49152]}', 400, "stop_token_ids"),
        (COMPLETIONS, b'{"prompt": "a", "logit_bias": {"49152": 1}}', 400, "logit_bias"),
        (COMPLETIONS, b'{"prompt": "a", "n": 1000}', 400, "n"),
        (COMPLETIONS, b'{"prompt": "\\ud800"}', 400, "prompt"),
        (COMPLETIONS, b'{"prompt": "\xff"}', 400, None),
        (COMPLETIONS, b'{"prompt": "%s"}' % (b"x" * 10_000_000), 413, None),
        (COMPLETIONS, b'{"prompt": "a"', 400, None),
        (COMPLETIONS, b'{"prompt": ' + b"[" * 100_000, 400, None),
        (CHAT, b'{"messages": []}', 400, "messages"),
        (CHAT, b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"word " * 1100), 400, "messages"),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\udfff"}]}', 400, "messages[0].content"),
        (CHAT, b'{"messages": [{"role": "usr", "content": "a"}]}', 400, "messages[0].role"),
        (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": "9"}', 400, "max_tokens"),
        (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}', 400, "tools"),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_bad_input_is_refused_by_name_and_the_next_request_is_served(
    demo_server: RealServer, route: str, body: bytes, status: int, param: str | None
) -> None:
    found, _, answer = demo_server.send("POST", route, body)
    assert found == status, answer
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == param and error["message"]
    assert demo_server.complete(max_tokens=1)[0] == 200


# --- clients that leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(demo_server: RealServer, stream: bool) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True, "n": 2}
    before = demo_server.figure("generation_tokens_total")
    if stream:
        connection, response = demo_server.stream("/v1/completions", body)
        next(events(response))
        response.close()
    else:
        connection = demo_server.connect()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    until(lambda: demo_server.figure("num_requests_running") == 2)
    until(lambda: (demo_server.figure("kv_cache_usage_perc") or 0) > 0)
    connection.close()
    until(lambda: demo_server.figure("num_requests_running") == 0)
    assert demo_server.figure("kv_cache_usage_perc") == 0 == demo_server.figure("num_requests_waiting")
    assert demo_server.figure("generation_tokens_total") - before < 900, "it ran on without its client"


# --- what it costs -------------------------------------------------------------------------------------------


def test_an_equal_prompt_is_found_in_the_prefix_cache(demo_server: RealServer) -> None:
    prompt = "In a quiet town by the river there was an old clock. " * 20
    answers = [demo_server.complete(prompt, max_tokens=24, temperature=0)[2] for _ in range(2)]
    first, second = (answer["usage"] for answer in answers)
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens"] - 16 <= second["prompt_tokens_details"]["cached_tokens"] < second["prompt_tokens"]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_an_idle_server_costs_no_cpu(demo_server: RealServer) -> None:
    demo_server.complete(max_tokens=4)

    def seconds() -> float:
        times = [process.cpu_times() for process in demo_server.tree()]
        return sum(each.user + each.system for each in times)

    before = seconds()
    time.sleep(2.0)
    assert seconds() - before < 0.1


# --- the terminal --------------------------------------------------------------------------------------------


def test_complete(demo_server: RealServer) -> None:
    options = ("--url", demo_server.url, "--max-tokens", "12", "--temperature", "0")
    text = demo_server.complete("Once upon a time", max_tokens=12, temperature=0)[2]["choices"][0]["text"]
    assert core("complete", "Once upon a time", *options) == text + "\n"
    assert core("complete", *options, stdin="Once upon a time") == text + "\n"


def test_chat(demo_server: RealServer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    body = json.dumps({"messages": messages, "max_tokens": 12, "temperature": 0})
    answer = json.loads(demo_server.send("POST", "/v1/chat/completions", body)[2])
    options = ("--system", "Be brief.", "--url", demo_server.url, "--max-tokens", "12", "--temperature", "0")
    assert core("chat", *options, stdin="Say hello.\n") == answer["choices"][0]["message"]["content"] + "\n"


def test_platforms() -> None:
    (cpu,) = [row for row in json.loads(core("platforms", "--json")) if row["name"] == "cpu"]
    assert cpu["state"] == "AVAILABLE" and cpu["devices"] and cpu["reason"]


def test_a_model_that_is_not_there_is_one_line() -> None:
    failed = subprocess.run(
        [CORE, "serve", "/no/such/model", "--port", "0"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1 and "/no/such/model" in failed.stderr
