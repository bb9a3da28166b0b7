"""Whatever a client sends, the answer is a 4xx in OpenAI's shape that names the field, and the server serves on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_http import assert_refused, post, send

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

TURN = b'"messages": [{"role": "user", "content": "hi"}]'


@pytest.mark.parametrize(
    ("route", "body", "param", "words"),
    [
        (COMPLETIONS, b'{"prompt": ""}', "prompt", ["empty"]),
        (COMPLETIONS, b'{"prompt": []}', "prompt", ["empty"]),
        (COMPLETIONS, b'{"prompt": ["a", ""]}', "prompt", ["empty"]),
        (COMPLETIONS, b'{"prompt": ["a", [1]]}', "prompt", ["either"]),
        (COMPLETIONS, b'{"prompt": ["a", 1]}', "prompt", ["either"]),
        (COMPLETIONS, b'{"prompt": [1, 100000]}', "prompt", ["100000"]),
        (COMPLETIONS, b'{"prompt": [1, -1]}', "prompt", ["-1"]),
        (COMPLETIONS, b'{"prompt": [1, 1e400]}', "prompt[1]", []),
        (COMPLETIONS, b'{"prompt": [1, 99999999999999999999999]}', "prompt[1]", []),
        (COMPLETIONS, b"{}", "prompt", ["required"]),
        (COMPLETIONS, b'{"prompt": {"a": 1}}', "prompt", ["expected", "got object"]),
        (COMPLETIONS, b'{"prompt": "a", "temperature": "hot"}', "temperature", ["expected float", "got str"]),
        (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', "temperature", ["nan"]),
        (COMPLETIONS, b'{"prompt": "a", "top_p": -Infinity}', "top_p", ["-inf"]),
        (COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}', "temperature", []),
        (COMPLETIONS, b'{"prompt": "a", "n": 1.5}', "n", ["expected int"]),
        (COMPLETIONS, b'{"prompt": "a", "n": 0}', "n", ["0"]),
        (COMPLETIONS, b'{"prompt": "a", "n": 2, "best_of": 1}', "best_of", ["1", "n, which is 2"]),
        (COMPLETIONS, b'{"prompt": "a", "best_of": 129}', "best_of", ["128"]),
        (COMPLETIONS, b'{"prompt": "a", "best_of": 2, "stream": true}', "best_of", ["stream"]),
        (COMPLETIONS, b'{"prompt": "a", "prompt_logprobs": 1, "stream": true}', "prompt_logprobs", ["stream"]),
        (COMPLETIONS, b'{"prompt": "a", "prompt_logprobs": 21}', "prompt_logprobs", ["21"]),
        (COMPLETIONS, b'{"prompt": "a", "allowed_token_ids": []}', "allowed_token_ids", ["empty"]),
        (COMPLETIONS, b'{"prompt": "a", "allowed_token_ids": [262]}', "allowed_token_ids", ["262"]),
        (COMPLETIONS, b'{"prompt": "a", "allowed_token_ids": [0], "min_tokens": 1}', "allowed_token_ids", ["rule out"]),
        (COMPLETIONS, b'{"prompt": "a", "bad_words": [" "]}', "bad_words", ["empty"]),
        (COMPLETIONS, b'{"prompt": "a", "bad_words": [1]}', "bad_words[0]", ["str"]),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": 0}', "max_tokens", ["0"]),
        (COMPLETIONS, b'{"prompt": "a", "max_tokens": 100000}', "max_tokens", ["100000", "512"]),
        (COMPLETIONS, b'{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias", ["int"]),
        (COMPLETIONS, b'{"prompt": "a", "logit_bias": {"999999": 1}}', "logit_bias", ["999999"]),
        (COMPLETIONS, b'{"prompt": "a", "logprobs": 21}', "logprobs", ["21"]),
        (COMPLETIONS, b'{"prompt": "a", "logprobs": 1, "echo": true, "n": 2, "stream": true}', "logprobs", ["echo"]),
        (COMPLETIONS, b'{"prompt": "a", "suffix": "z"}', "suffix", ["no tokens for filling"]),
        (COMPLETIONS, b'{"prompt": [5], "suffix": "z"}', "suffix", ["of text"]),
        (COMPLETIONS, b'{"prompt": "a", "stop": ""}', "stop", ["empty"]),
        (COMPLETIONS, b'{"prompt": "a", "seed": 18446744073709551616}', "seed", []),
        (COMPLETIONS, b'{"prompt": "a", "stream_options": {}}', "stream_options", ["stream"]),
        (COMPLETIONS, b'{"prompt": "a", "stream_options": {"usage": true}}', "stream_options.usage", ["no such"]),
        (COMPLETIONS, b'{"prompt": "a", "deadline_ms": 0}', "deadline_ms", []),
        (COMPLETIONS, b'{"prompt": "\\ud800"}', "prompt", ["surrogate"]),
        (COMPLETIONS, b'{"prompt": ["a", "\\udc00"]}', "prompt[1]", ["surrogate"]),
        (COMPLETIONS, b'{"prompt": "a", "temprature": 1}', "temprature", ["did you mean 'temperature'"]),
        (COMPLETIONS, b'{"prompt": "a", "maxTokens": 1}', "maxTokens", ["did you mean 'max_tokens'"]),
        (COMPLETIONS, b'{"prompt": "a"', None, ["JSON"]),
        (COMPLETIONS, b"", None, ["JSON"]),
        (COMPLETIONS, b"\xff\xfe", None, ["UTF-8"]),
        (COMPLETIONS, b'{"prompt": "\xff"}', None, ["UTF-8"]),
        (COMPLETIONS, b"[]", None, ["expected object", "got array"]),
        (COMPLETIONS, b"[" * 100_000, None, []),
        (COMPLETIONS, b'{"prompt": ' + b"[" * 100_000, None, ["nested"]),
        (CHAT, b"{}", "messages", ["required"]),
        (CHAT, b'{"messages": []}', "messages", ["empty"]),
        (CHAT, b'{"messages": "hi"}', "messages", ["expected array", "got str"]),
        (CHAT, b'{"messages": [{"content": "hi"}]}', "messages[0].role", ["required"]),
        (CHAT, b'{"messages": [{"role": "user"}]}', "messages[0].content", ["missing"]),
        (CHAT, b'{"messages": [{"role": "usr", "content": ""}]}', "messages[0].role", ["'usr'", "user"]),
        (CHAT, b'{"messages": [{"role": "user", "content": 5}]}', "messages[0].content", ["got int"]),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\udfff"}]}', "messages[0].content", ["surrogate"]),
        (
            CHAT,
            b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}',
            "messages[0].content[0].type",
            ["['text']", "image_url"],
        ),
        (CHAT, b"{" + TURN + b', "tools": [{"type": "function"}]}', "tools", ["--tool-call-parser"]),
        (CHAT, b"{" + TURN + b', "tool_choice": "required"}', "tool_choice", ["no tools"]),
        (CHAT, b"{" + TURN + b', "tool_choice": {"type": "function"}}', "tool_choice.function", ["required"]),
        (CHAT, b"{" + TURN + b', "tool_choice": "any"}', "tool_choice", ["'any'"]),
        (CHAT, b"{" + TURN + b', "tool_choice": 5}', "tool_choice", ["got int"]),
        (CHAT, b"{" + TURN + b', "tools": {"type": "function"}}', "tools", ["expected array"]),
        (COMPLETIONS, b'{"prompt": "a", "tools": [{"type": "function"}]}', "tools", ["not implement"]),
        (CHAT, b'{"messages": [{"role": "user", "tool_calls": []}]}', "messages[0].content", ["missing"]),
        (CHAT, b'{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "messages[0].tool_calls[0].function", []),
        (
            CHAT,
            b'{"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]}',
            "messages[0].tool_calls",
            ["assistant"],
        ),
        (
            CHAT,
            b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]}',
            "messages[0].tool_calls[0].function.arguments",
            ["JSON object"],
        ),
        (CHAT, b"{" + TURN + b', "response_format": {"type": "xml"}}', "response_format.type", ["xml"]),
        (CHAT, b"{" + TURN + b', "response_format": {"type": "json_schema"}}', "response_format.json_schema", ["required"]),
        (CHAT, b"{" + TURN + b', "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}',
         "response_format", ["x"]),
        (CHAT, b"{" + TURN + b', "guided_regex": "(", "n": 2}', "guided_regex", ["unclosed"]),
        (COMPLETIONS, b'{"prompt": "a", "structured_outputs": {}}', "structured_outputs", ["exactly one"]),
        (COMPLETIONS, b'{"prompt": "a", "structured_outputs": {"regx": "a"}}', "structured_outputs.regx", ["no such"]),
        (COMPLETIONS, b'{"prompt": "a", "structured_outputs": {"grammar": "start: x"}}', "structured_outputs.grammar",
         ["x"]),
        (COMPLETIONS, b'{"prompt": "a", "structured_outputs": {"regex": "a"}, "guided_choice": ["b"]}', "guided_choice",
         ["structured_outputs and guided_choice"]),
        (COMPLETIONS, b'{"prompt": "a", "guided_json": {}, "min_tokens": 1}', "min_tokens", ["form"]),
        (COMPLETIONS, b'{"prompt": "a", "guided_json": {}, "ignore_eos": true}', "ignore_eos", ["form"]),
        (CHAT, b"{" + TURN + b', "top_logprobs": 2}', "top_logprobs", ["logprobs"]),
        (CHAT, b"{" + TURN + b', "logprobs": true, "top_logprobs": 50}', "top_logprobs", ["50"]),
        (CHAT, b"{" + TURN + b', "max_completion_tokens": -1}', "max_completion_tokens", ["-1"]),
        (CHAT, b"{" + TURN + b', "chat_template_kwargs": {"messages": 1}}', "chat_template_kwargs", ["messages"]),
    ],
)  # fmt: skip
def test_refused_by_name(server: Any, route: str, body: bytes, param: str | None, words: list[str]) -> None:
    assert_refused(post(server.url, route, body), 400, param, *words)
    assert server.engine.requests == []
    assert post(server.url, COMPLETIONS, {"prompt": "a", "max_tokens": 1})[0] == 200


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT])
def test_over_long_prompt_names_both_numbers(server: Any, route: str) -> None:
    text = "a b " * 300
    body = {"prompt": text} if route == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
    answer = post(server.url, route, body)
    assert_refused(answer, 400, "prompt" if route == COMPLETIONS else "messages", "512")
    assert any(word.isdigit() and int(word) >= 600 for word in answer[2]["error"]["message"].split())


def test_prompt_bounded_by_characters_before_tokenizing(server: Any) -> None:
    assert_refused(post(server.url, COMPLETIONS, {"prompt": "x" * 1_000_000}), 400, "prompt", "1000000", "512")


@pytest.mark.parametrize("chunked", [False, True])
def test_long_body_is_413(server: Any, chunked: bool) -> None:
    body = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'
    headers = {"Transfer-Encoding": "chunked"} if chunked else {}
    sent: Any = iter([body[start : start + 65536] for start in range(0, len(body), 65536)]) if chunked else body
    assert_refused(send(server.url, "POST", COMPLETIONS, sent, headers), 413, None, str(8 << 20))
    assert post(server.url, COMPLETIONS, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_body_that_is_not_what_its_headers_say(server: Any) -> None:
    answer = post(server.url, COMPLETIONS, b"not gzip", {"Content-Encoding": "gzip"})
    assert_refused(answer, 400, None, "could not be read")


def test_one_request_cannot_ask_for_everything(server: Any) -> None:
    assert_refused(post(server.url, COMPLETIONS, {"prompt": ["a"] * 100, "n": 100}), 400, "prompt", "100 prompts")


def test_unknown_model_and_route_and_method(server: Any) -> None:
    assert_refused(
        post(server.url, COMPLETIONS, {"model": "gpt-4", "prompt": "a"}), 404, "model", "gpt-4", "fake/model"
    )
    assert_refused(send(server.url, "GET", "/v1/models/nope"), 404, "model", "nope")
    assert_refused(post(server.url, "/v1/moderations", {}), 404, None, "/v1/moderations")
    wrong = send(server.url, "GET", CHAT)
    assert_refused(wrong, 405, None, "POST", "GET")
    assert wrong[1]["Allow"] == "POST"


def test_wrong_content_type_is_tolerated(server: Any) -> None:
    assert post(server.url, COMPLETIONS, {"prompt": "a"}, {"Content-Type": "text/plain"})[0] == 200


def test_unknown_fields_are_ignored_and_named(server: Any) -> None:
    status, headers, _ = post(server.url, COMPLETIONS, {"prompt": "a", "zzz": 1, "x y\n": 2, "user": "me"})
    assert status == 200 and headers["x-core-ignored-fields"] == "zzz, x%20y%0A"
    assert "x-core-ignored-fields" not in post(server.url, COMPLETIONS, {"prompt": "a", "user": "me"})[1]


def test_unknown_fields_header_stays_short(server: Any) -> None:
    strange = {f"q{index}" * 40: 1 for index in range(1000)}
    status, headers, _ = post(server.url, COMPLETIONS, {"prompt": "a", **strange})
    assert status == 200 and headers["x-core-ignored-fields"].endswith(", +980")


def test_fields_that_ask_for_nothing_are_fine(server: Any) -> None:
    body = {
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "functions": None,
        "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True,
    }  # fmt: skip
    status, headers, _ = post(server.url, CHAT, body)
    assert status == 200 and "x-core-ignored-fields" not in headers
    assert tokenizer_text(server) == "<|system|>a\nb\n<|assistant|>"


def tokenizer_text(server: Any) -> str:
    return server.engine._tokenizer.decode(server.engine.requests[-1].prompt_token_ids)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
field_names = st.sampled_from(
    [
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "logit_bias",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "echo",
        "best_of",
        "suffix",
        "allowed_token_ids",
        "bad_words",
        "prompt_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "chat_template_kwargs",
        "deadline_ms",
        "request_id",
        "priority",
        "cache_salt",
        "zzz",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(field_names, json_values, max_size=4), route=st.sampled_from([COMPLETIONS, CHAT]))
def test_any_body_gets_an_answer_or_a_4xx(server: Any, fields: dict, route: str) -> None:
    fields.pop("stream", None)  # its answers are read elsewhere
    status, _, body = send(server.url, "POST", route, json.dumps(fields).encode())
    if status != 200:
        assert 400 <= status < 500 and body["error"]["message"], body


@pytest.mark.parametrize("path", ["/%ff", "/v1/models/%ff%fe", "/v1/models/%ED%A0%80", "/v1/models/" + "x" * 5000])
def test_strange_paths(server: Any, path: str) -> None:
    status, _, body = send(server.url, "GET", path)
    assert status == 404 and len(body["error"]["message"]) < 1000


def test_head(server: Any) -> None:
    assert send(server.url, "HEAD", "/v1/models")[::2] == (200, None)
