"""Anthropic's Messages API: with its SDK as the client, and by hand what the SDK does not send."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pydantic
import pytest
from anthropic_sdk import AnthropicSDK
from plain_http import post, send

from core.errors import EngineDead, QueueFull
from core.server.options import ServerOptions

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
SAY = {"messages": [{"role": "user", "content": "say"}], "max_tokens": 100}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}"
    "{% for call in message.tool_calls %}{{ call.id }}: {{ call.function.name }} in {{ call.function.arguments.city }}"
    "{% endfor %}{% if message.tool_call_id %} for {{ message.tool_call_id }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "get_weather", "description": "It.", "input_schema": SCHEMA}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'


class TestAnthropicSDK(AnthropicSDK):
    @pytest.fixture
    def root_url(self, server: Any) -> str:
        return server.url


def prompt(server: Any) -> str:
    return server.engine._tokenizer.decode(server.engine.requests[-1].prompt_token_ids)


def assert_refused(answer: tuple[int, dict, dict], status: int, kind: str, *words: str) -> None:
    """An error in Anthropic's shape whose message begins with the first of the words."""
    assert answer[0] == status, answer
    assert set(answer[2]) == {"type", "error", "request_id"} and answer[2]["type"] == "error"
    assert set(answer[2]["error"]) == {"type", "message"} and answer[2]["error"]["type"] == kind
    assert answer[1]["request-id"] == answer[2]["request_id"]
    message = answer[2]["error"]["message"]
    assert message.startswith(words[0]) and all(word in message for word in words), message


# --- answers -------------------------------------------------------------------------------------------------


def test_in_full(server: Any) -> None:
    body = post(server.url, MESSAGES, SAY)[2]
    (request,) = server.engine.requests
    usage = {"input_tokens": len(request.prompt_token_ids) - 3, "cache_read_input_tokens": 3}
    more = {"output_tokens": len(request.output_token_ids), "cache_creation_input_tokens": 0}
    assert body.pop("id").startswith("msg")
    assert body == {
        "type": "message", "role": "assistant", "model": "fake/model",
        "content": [{"type": "text", "text": server.engine.answer}],
        "stop_reason": "end_turn", "stop_sequence": None, "usage": {**usage, **more},
    }  # fmt: skip


def test_parameters_reach_the_engine(server: Any) -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 9}
    assert post(server.url, MESSAGES, {**SAY, **given, "stop_sequences": ["zz"]})[0] == 200
    params = server.engine.requests[0].params
    assert {name: getattr(params, name) for name in given} == given and params.stop == ("zz",)


def test_an_answer_that_was_begun_goes_on(server: Any) -> None:
    messages = [*SAY["messages"], {"role": "assistant", "content": [{"type": "text", "text": "well"}]}]
    post(server.url, MESSAGES, {**SAY, "messages": messages, "system": [{"type": "text", "text": "Be."}]})
    assert prompt(server) == "<|system|>Be.\n<|user|>say\n<|assistant|>well"


def test_an_error_inside_a_stream_is_its_last_event(server: Any) -> None:
    server.engine.error_after = (2, EngineDead("killed by SIGKILL"))
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match="killed by SIGKILL"),
    ):
        list(client.messages.create(**SAY, model="fake/model", stream=True))


# --- tools and thinking --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tooled(serve: Callable[..., Any]) -> Any:
    return serve(ServerOptions(tool_call_parser="hermes", reasoning_parser="qwen3"), TEMPLATE)


@pytest.fixture
def client(tooled: Any) -> Iterator[anthropic.Anthropic]:
    tooled.engine.reset()
    with anthropic.Anthropic(base_url=tooled.url, api_key="none", max_retries=0) as client:
        yield client


def test_thinking_text_and_calls_are_blocks(tooled: Any, client: anthropic.Anthropic) -> None:
    tooled.engine.answer = f"<think>hm</think>Let me see.\n{CALL % 'Paris'}\n{CALL % 'Rome'}"
    fields = {**SAY, "model": "fake/model", "tools": [WEATHER], "max_tokens": 300}
    whole = client.messages.create(**fields)
    with client.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        thinking, text, *calls = message.content
        assert (thinking.thinking, text.text, message.stop_reason) == ("hm", "Let me see.", "tool_use")
        assert [(call.name, call.input) for call in calls] == [
            ("get_weather", {"city": "Paris"}),
            ("get_weather", {"city": "Rome"}),
        ]
    function = {"name": "get_weather", "description": "It.", "parameters": SCHEMA}
    assert prompt(tooled).startswith(json.dumps([{"type": "function", "function": function}]))


def test_an_answer_and_its_results_go_back(tooled: Any, client: anthropic.Anthropic) -> None:
    tooled.engine.answer = f"<think>hm</think>{CALL % 'Paris'}"
    create = client.messages.create
    fields: dict[str, Any] = {**SAY, "model": "fake/model", "tools": [WEATHER]}
    message = create(**fields)
    used = message.content[-1].id
    result = {"type": "tool_result", "tool_use_id": used, "content": [{"type": "text", "text": "sunny"}]}
    results = [result, {"type": "text", "text": "And?"}]
    turns = [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    create(**{**fields, "messages": [*SAY["messages"], *turns]})
    history = f"<|user|>say<|assistant|>(hm){used}: get_weather in Paris<|tool|>sunny for {used}<|user|>And?"
    assert prompt(tooled).endswith(f"{history}<|assistant|>")


def test_one_call_where_they_may_not_be_parallel(tooled: Any, client: anthropic.Anthropic) -> None:
    tooled.engine.answer = f"{CALL % 'Paris'}\n{CALL % 'Rome'}"
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    fields: dict[str, Any] = {**SAY, "model": "fake/model", "tools": [WEATHER], "max_tokens": 300}
    assert len(client.messages.create(**fields, tool_choice=choice).content) == 1


def test_what_is_not_kept_to_is_named(tooled: Any) -> None:
    fields = {"tools": [{**WEATHER, "strict": True}], "thinking": {"type": "enabled"}, "zzz": 1, "metadata": {}}
    status, headers, _ = post(tooled.url, MESSAGES, {**SAY, **fields})
    assert status == 200 and headers["x-core-ignored-fields"] == "zzz, tools%5B0%5D.strict, thinking"


# --- an answer of a given form -------------------------------------------------------------------------------


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


def test_the_sdk_parses_what_it_asked_for(server: Any) -> None:
    server.engine.answer = '{"city": "Rome", "degrees": 21}'
    fields: dict[str, Any] = {**SAY, "model": "fake/model", "max_tokens": 100}
    rome = Weather(city="Rome", degrees=21)
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        assert client.messages.parse(**fields, output_format=Weather).parsed_output == rome
        with client.messages.stream(**fields, output_format=Weather) as stream:
            assert stream.get_final_message().parsed_output == rome
        assert client.beta.messages.parse(**fields, output_format=Weather).parsed_output == rome
    forms = [request.params.structured_outputs for request in server.engine.requests]
    assert len(forms) == 3 and len(set(map(str, forms))) == 1
    assert forms[0].strict and forms[0].json["required"] == ["city", "degrees"]


def test_effort_is_not_kept_to(server: Any) -> None:
    status, headers, _ = post(server.url, MESSAGES, {**SAY, "output_config": {"effort": "high"}})
    assert status == 200 and headers["x-core-ignored-fields"] == "output_config.effort"
    assert server.engine.requests[0].params.structured_outputs is None


# --- what is refused -----------------------------------------------------------------------------------------


def said(*blocks: dict, role: str = "user") -> dict:
    return {"messages": [{"role": role, "content": list(blocks)}]}


FORMAT = {"type": "json_schema", "schema": {"type": "object", "if": {}}}
RESULT = {"type": "tool_result", "tool_use_id": "a"}
USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}


@pytest.mark.parametrize("route", [MESSAGES, COUNT])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, ["messages: ", "length"]),
        ({"messages": [{"role": "system", "content": "a"}]}, ["messages[0].role: ", "'system'"]),
        ({"messages": [{"role": "user"}]}, ["messages[0].content: ", "required"]),
        (said(), ["messages[0].content: ", "empty"]),
        (said({"type": "text"}), ["messages[0].content[0].text: ", "required"]),
        (said({"type": "image", "source": {}}), ["messages[0].content[0].type: ", "['text']", "'image'"]),
        (said({**RESULT, "content": [{"type": "image"}]}), ["messages[0].content[0].content[0].type: ", "['text']"]),
        (said({"type": "video"}), ["messages[0].content[0].type: ", "'video'"]),
        (said(USE), ["messages[0].content[0].type: ", "'tool_use'", "user"]),
        (said(RESULT, role="assistant"), ["messages[0].content[0].type: ", "'tool_result'", "assistant"]),
        (said(USE, role="assistant"), ["messages[0].content: ", "results"]),
        ({"system": 5}, ["system: ", "got int"]),
        ({"tools": [WEATHER]}, ["tools: ", "--tool-call-parser"]),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, ["tools[0]."]),
        ({"tool_choice": {"type": "auto", "name": 5}}, ["tool_choice.name: ", "got int"]),
        ({"output_format": {"type": "json_schema"}}, ["output_format.schema: ", "required"]),
        ({"output_config": {"format": {"type": "xml"}}}, ["output_config.format.type: ", "'xml'"]),
        (
            {"output_format": FORMAT, "output_config": {"format": FORMAT}},
            ["output_format: output_config.format says it already"],
        ),
        ({"mcp_servers": [{}]}, ["mcp_servers: ", "not implement"]),
        ({"sytem": "a"}, ["sytem: ", "'system'"]),
    ],
)
def test_refused_by_name(server: Any, route: str, fields: dict, words: list[str]) -> None:
    body = {**SAY, **fields} if route == MESSAGES else {"messages": SAY["messages"], **fields}
    assert_refused(post(server.url, route, body), 400, "invalid_request_error", *words)
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, ["max_tokens: ", "null"]),
        ({"max_tokens": 0}, ["max_tokens: "]),
        ({"max_tokens": 512}, ["max_tokens: 512"]),
        ({"temperature": "hot"}, ["temperature: ", "got str"]),
        ({"top_p": 2}, ["top_p: 2"]),
        ({"stop_sequences": [""]}, ["stop_sequences[0]: "]),
        ({"stop_sequences": ["a"] * 17}, ["stop_sequences: "]),
        ({"messages": [{"role": "user", "content": "a b " * 300}]}, ["messages: ", "512"]),
        ({"output_config": {"format": FORMAT}}, ["output_config.format: ", '"if"']),
        ({"output_format": FORMAT}, ["output_format: ", '"if"']),
    ],
)
def test_refused_where_tokens_are_chosen(server: Any, fields: dict, words: list[str]) -> None:
    assert_refused(post(server.url, MESSAGES, {**SAY, **fields}), 400, "invalid_request_error", *words)


def test_every_other_error_has_the_shape_too(server: Any) -> None:
    assert_refused(post(server.url, MESSAGES, b"{"), 400, "invalid_request_error", "the body is not valid JSON")
    assert_refused(post(server.url, MESSAGES, {**SAY, "model": "gpt-4"}), 404, "not_found_error", "model: ")
    assert_refused(post(server.url, "/v1/messages/batches", {}), 404, "not_found_error", "no such route")
    assert_refused(send(server.url, "GET", MESSAGES), 405, "invalid_request_error", "/v1/messages takes POST")
    assert_refused(post(server.url, MESSAGES, b" " * 9_000_000), 413, "request_too_large", "the body is longer")
    for error, status, kind in (
        (QueueFull("4096 requests wait"), 429, "rate_limit_error"),
        (RuntimeError("a secret of ours"), 500, "api_error"),
        (EngineDead("killed"), 503, "overloaded_error"),
    ):
        server.engine.error = error
        answer = post(server.url, MESSAGES, SAY)
        assert_refused(answer, status, kind, "")
        assert "secret" not in answer[2]["error"]["message"]


# --- keys ----------------------------------------------------------------------------------------------------


def test_a_key_comes_as_anthropics_do_or_as_a_bearer_token(serve: Callable[..., Any]) -> None:
    url = serve(ServerOptions(api_key=("secret",))).url
    for route in (MESSAGES, COUNT):
        for headers in ({"x-api-key": "secret"}, {"Authorization": "Bearer secret"}):
            assert post(url, route, SAY, headers)[0] == 200
        for headers in ({}, {"x-api-key": "no"}, {"x-api-key": ""}, {"Authorization": "secret"}):
            assert_refused(post(url, route, SAY, headers), 401, "authentication_error", "the API key", "x-api-key")
    assert send(url, "GET", "/v1/models", None, {"x-api-key": "secret"})[0] == 401
