"""/tokenize and /detokenize, and the routes that SageMaker and balancers call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import pytest
from fake_server import TEMPLATE
from plain_http import assert_refused, post, send

from core.server.options import ServerOptions

CHAT = {"messages": [{"role": "user", "content": "say"}]}


def asked(server: Any) -> list[int]:
    return server.engine.requests[-1].prompt_token_ids


# --- tokens --------------------------------------------------------------------------------------------------


def test_a_prompts_tokens_are_those_that_a_completion_has(server: Any) -> None:
    text = "the naïve fox<|call|> in 漢字"
    status, _, body = post(server.url, "/tokenize", {"prompt": text, "model": "fake/model"})
    post(server.url, "/v1/completions", {"prompt": text})
    assert status == 200
    assert body == {"count": len(asked(server)), "max_model_len": 512, "tokens": asked(server), "token_strs": None}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_generation_prompt": False},
        {"messages": [*CHAT["messages"], {"role": "assistant", "content": "well"}], "continue_final_message": True},
        {"chat_template_kwargs": {"add": "x"}},
    ],
)
def test_a_conversations_tokens_are_those_that_a_chat_has(serve: Callable[..., Any], fields: dict) -> None:
    server = serve(template="{{ add }}" + TEMPLATE)
    body = post(server.url, "/tokenize", {**CHAT, **fields})[2]
    post(server.url, "/v1/chat/completions", {**CHAT, **fields})
    assert body["tokens"] == asked(server) and body["count"] == len(asked(server))


def test_tools_are_tokens_too(serve: Callable[..., Any]) -> None:
    server = serve(ServerOptions(tool_call_parser="hermes"), "{{ tools | tojson }}" + TEMPLATE)
    fields = {**CHAT, "tools": [{"type": "function", "function": {"name": "look"}}]}
    body = post(server.url, "/tokenize", fields)[2]
    post(server.url, "/v1/chat/completions", fields)
    assert body["tokens"] == asked(server)


def test_tokens_as_the_vocabulary_spells_them(server: Any) -> None:
    body = post(server.url, "/tokenize", {"prompt": "the a<|end|>", "return_token_strs": True})[2]
    assert body["token_strs"] == ["the", "Ġa", "<|end|>"]


def test_a_prompt_that_no_answer_would_fit_behind_is_counted(server: Any) -> None:
    assert post(server.url, "/tokenize", {"prompt": "x" * 100_000})[2]["count"] == 100_000
    assert post(server.url, "/tokenize", {"prompt": ""})[2]["count"] == 0


@pytest.mark.parametrize("text", ["", "the naïve fox<|call|> in 漢字"])
def test_there_and_back(server: Any, text: str) -> None:
    tokens = post(server.url, "/tokenize", {"prompt": text})[2]["tokens"]
    assert post(server.url, "/detokenize", {"tokens": tokens})[::2] == (200, {"prompt": text})


@pytest.mark.parametrize(
    ("route", "body", "param", "words"),
    [
        ("/tokenize", {}, "prompt", ["neither"]),
        ("/tokenize", {"prompt": "a", **CHAT}, "prompt", ["both"]),
        ("/tokenize", {"prompt": ["a"]}, "prompt", ["expected str"]),
        ("/tokenize", {"messages": []}, "messages", ["empty"]),
        ("/tokenize", {"messages": [{"role": "usr", "content": ""}]}, "messages[0].role", ["'usr'"]),
        ("/tokenize", {**CHAT, "tools": [{}]}, "tools", ["--tool-call-parser"]),
        ("/tokenize", {**CHAT, "chat_template": "x"}, "chat_template", ["not implement"]),
        (
            "/tokenize",
            {**CHAT, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            ["contradicts"],
        ),
        ("/tokenize", {"promt": "a"}, "promt", ["'prompt'"]),
        ("/detokenize", {}, "tokens", ["required"]),
        ("/detokenize", {"tokens": [1, 262]}, "tokens[1]", ["262"]),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", ["-1"]),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", ["expected int"]),
        ("/invocations", {"max_tokens": 3}, "messages", ["prompt"]),
        ("/invocations", {"messages": []}, "messages", ["empty"]),
        ("/invocations", {"prompt": ""}, "prompt", ["empty"]),
        ("/invocations", b"[]", None, ["object"]),
        ("/invocations", b"{", None, ["JSON"]),
    ],
)
def test_refused_by_name(server: Any, route: str, body: Any, param: str | None, words: list[str]) -> None:
    assert_refused(post(server.url, route, body), 400, param, *words)


def test_unknown_model_and_unknown_fields(server: Any) -> None:
    assert_refused(post(server.url, "/tokenize", {"prompt": "a", "model": "gpt-4"}), 404, "model", "gpt-4")
    assert post(server.url, "/detokenize", {"tokens": [5], "zzz": 1})[1]["x-core-ignored-fields"] == "zzz"


# --- SageMaker -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind"), [(CHAT, "chat.completion"), ({"prompt": "say"}, "text_completion"), ({**CHAT, "prompt": 1}, None)]
)
def test_invocations_are_of_the_api_that_their_fields_name(server: Any, body: dict, kind: str | None) -> None:
    status, headers, answer = post(server.url, "/invocations", body)
    assert status == 200 and answer["object"] == (kind or "chat.completion")
    assert ("x-core-ignored-fields" in headers) is (kind is None)


def test_invocations_stream(server: Any) -> None:
    with urlopen(f"{server.url}/invocations", json.dumps({**CHAT, "stream": True}).encode()) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.read().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ping_says_whether_it_is_ready(server: Any, method: str) -> None:
    assert send(server.url, method, "/ping")[0] == 200
    server.engine.state = "loading"
    assert send(server.url, method, "/ping")[::2] == send(server.url, "GET", "/health")[::2]
    assert send(server.url, method, "/ping")[0] == 503


@pytest.mark.parametrize("route", ["/tokenize", "/detokenize", "/invocations"])
def test_not_while_the_model_loads(server: Any, route: str) -> None:
    server.engine.state = "loading"
    status, _, body = post(server.url, route, {"prompt": "a", "tokens": [1]})
    assert status == 503 and body["error"]["code"] == "not_ready"


def test_the_routes_that_read_want_a_key(serve: Callable[..., Any]) -> None:
    url = serve(ServerOptions(api_key=("secret",))).url
    bearer = {"Authorization": "Bearer secret"}
    for route, body in {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]}, "/invocations": CHAT}.items():
        assert_refused(post(url, route, body), 401, None, "API key")
        assert post(url, route, body, bearer)[0] == 200
    assert send(url, "GET", "/ping")[0] == 200


# --- load ----------------------------------------------------------------------------------------------------


async def test_load_counts_the_requests_in_hand(server: Any) -> None:
    def load() -> int:
        return send(server.url, "GET", "/load")[2]["server_load"]

    async def until(count: int) -> None:
        async with asyncio.timeout(10):
            while await asyncio.to_thread(load) != count:
                await asyncio.sleep(0.005)

    await until(0)  # a request of another test may end only now
    server.engine.stall_after = 1
    body = json.dumps({"prompt": "say", "max_tokens": 9})
    streams = [await asyncio.open_connection(*server.url.removeprefix("http://").split(":")) for _ in range(3)]
    for _, writer in streams:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
    await until(3)
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()
    await until(0)
