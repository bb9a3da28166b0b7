"""Parameters that shape the prompt or tell more of the answer, and those that are refused by name."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from fake_server import TEMPLATE
from plain_http import assert_refused, post

from core.server.options import ServerOptions

Serve = Callable[..., Any]
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "say"}]


def prompt_of(server: Any) -> str:
    return str(server.engine._tokenizer.decode(server.engine.requests[-1].prompt_token_ids, skip_special_tokens=False))


def events(server: Any, route: str, body: dict[str, Any]) -> list[Any]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        connection.request("POST", route, msgspec.json.encode({**body, "stream": True}))
        sent = connection.getresponse().read().split(b"\n\n")
    finally:
        connection.close()
    return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in sent[:-2]]


# --- prompts that are cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "kept"), [(3, [7, 8, 9]), (100, [5, 6, 7, 8, 9])])
def test_the_end_of_a_prompt_is_kept(server: Any, keep: int, kept: list[int]) -> None:
    assert post(server.url, COMPLETIONS, {"prompt": [5, 6, 7, 8, 9], "truncate_prompt_tokens": keep})[0] == 200
    assert server.engine.requests[0].prompt_token_ids == kept


def test_as_much_is_kept_as_fits_beside_the_answer(server: Any) -> None:
    body = {"prompt": "ab" * 50_000, "max_tokens": 12, "truncate_prompt_tokens": -1}
    status, _, answer = post(server.url, COMPLETIONS, body)
    assert status == 200 and answer["usage"]["prompt_tokens"] == 500


def test_a_conversation_is_cut_too(server: Any) -> None:
    assert post(server.url, CHAT, {"messages": MESSAGES, "truncate_prompt_tokens": 13})[0] == 200
    assert prompt_of(server) == "<|assistant|>"


@pytest.mark.parametrize("keep", [0, -2])
def test_nothing_cannot_be_kept(server: Any, keep: int) -> None:
    param = "prompt" if keep == 0 else "truncate_prompt_tokens"
    assert_refused(post(server.url, COMPLETIONS, {"prompt": "a", "truncate_prompt_tokens": keep}), 400, param)


# --- tokens of the answer ------------------------------------------------------------------------------------


def test_tokens_of_completions(server: Any) -> None:
    body = {"prompt": [[5, 6], [7]], "n": 2, "max_tokens": 6, "return_token_ids": True}
    choices = post(server.url, COMPLETIONS, body)[2]["choices"]
    made = [request.output_token_ids for request in server.engine.requests]
    assert [choice["token_ids"] for choice in choices] == made
    assert [choice["prompt_token_ids"] for choice in choices] == [[5, 6], [5, 6], [7], [7]]
    streamed: dict[int, list[int]] = {}
    prompts: dict[int, list[int]] = {}
    for event in events(server, COMPLETIONS, body):
        for choice in event["choices"]:
            streamed.setdefault(choice["index"], []).extend(choice["token_ids"])
            if "prompt_token_ids" in choice:
                assert choice["index"] not in prompts
                prompts[choice["index"]] = choice["prompt_token_ids"]
    assert streamed == dict(enumerate(made)) and prompts == {0: [5, 6], 1: [5, 6], 2: [7], 3: [7]}


def test_tokens_of_chats(server: Any) -> None:
    server.engine.answer = "naïve 漢字 end"  # several tokens to a character, so some deltas have no chunk
    body = {"messages": MESSAGES, "return_token_ids": True}
    whole = post(server.url, CHAT, body)[2]
    (request,) = server.engine.requests
    assert whole["choices"][0]["token_ids"] == request.output_token_ids
    assert whole["prompt_token_ids"] == request.prompt_token_ids
    first, *others = events(server, CHAT, body)
    assert first["prompt_token_ids"] == request.prompt_token_ids
    assert not [event for event in others if "prompt_token_ids" in event]
    assert [token for event in others for token in event["choices"][0]["token_ids"]] == request.output_token_ids


def test_no_tokens_unless_asked(server: Any) -> None:
    for route, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
        assert b"token_ids" not in msgspec.json.encode(post(server.url, route, body)[2])
        assert b"token_ids" not in msgspec.json.encode(events(server, route, body))


# --- chat templates ------------------------------------------------------------------------------------------


def test_what_is_for_the_template_reaches_it(serve: Serve) -> None:
    server = serve(template="{{ documents[0].title }} {{ reasoning_effort }} {{ tone }}")
    extras = {"documents": [{"title": "T"}], "reasoning_effort": "low", "chat_template_kwargs": {"tone": "dry"}}
    status, headers, _ = post(server.url, CHAT, {"messages": MESSAGES, **extras})
    assert status == 200 and "x-core-ignored-fields" not in headers
    assert prompt_of(server) == "T low dry"


def test_what_the_template_makes_nothing_of_is_named(server: Any) -> None:
    extras = {"documents": [{"title": "T"}], "reasoning_effort": "low"}
    status, headers, _ = post(server.url, CHAT, {"messages": MESSAGES, **extras})
    assert status == 200 and headers["x-core-ignored-fields"] == "documents, reasoning_effort"


def test_a_template_of_the_request_is_taken_where_the_operator_says_so(serve: Serve, server: Any) -> None:
    body = {"messages": MESSAGES, "chat_template": "<{{ messages[0].content }}>"}
    assert_refused(post(server.url, CHAT, body), 400, "chat_template", "--trust-request-chat-template")
    for template in (TEMPLATE, None):
        trusting = serve(ServerOptions(trust_request_chat_template=True), template)
        assert post(trusting.url, CHAT, body)[0] == 200
        assert prompt_of(trusting) == "<say>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 'x' * 10**9 }}",
        "x" * 70_000,
    ],
)
def test_a_hostile_template_is_the_clients_error(serve: Serve, template: str) -> None:
    url = serve(ServerOptions(trust_request_chat_template=True)).url
    status, _, body = post(url, CHAT, {"messages": MESSAGES, "chat_template": template})
    assert status == 400 and body["error"]["param"] in ("chat_template", "messages"), body


def test_a_long_conversation_does_not_hold_up_the_others(serve: Serve) -> None:
    """It is rendered in another thread; what comes of it is the same."""
    server = serve(max_model_len=100_000)
    messages = [{"role": "user", "content": "a"}] * 300
    answer = post(server.url, CHAT, {"messages": messages})
    assert_refused(answer, 400, "messages", "512")


# --- refused by name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("return_tokens_as_token_ids", True),
        ("include_reasoning", False),
        ("kv_transfer_params", {}),
        ("use_beam_search", True),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(server: Any, field: str, value: Any) -> None:
    for route, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
        answer = post(server.url, route, {**body, field: value})
        assert_refused(answer, 400, field, "does not implement")
        assert answer[2]["error"]["code"] == "unsupported"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
def test_other_modalities_are_refused_with_those_there_are(server: Any, kind: str) -> None:
    content = [{"type": "text", "text": "what is it?"}, {"type": kind, kind: {"url": "https://a.example"}}]
    answer = post(server.url, CHAT, {"messages": [{"role": "user", "content": content}]})
    assert_refused(answer, 400, "messages[0].content[1].type", "['text']", kind)
