"""OpenAI's Responses API: with its SDK as the client, and by hand what the SDK does not send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from plain_http import assert_refused, post, send

from core.errors import EngineDead, NotFound
from core.server.options import ServerOptions
from core.server.responses_format import ResponseBody, new_body
from core.server.responses_protocol import ResponsesRequest
from core.server.responses_store import ResponseStore, StoredResponse

RESPONSES = "/v1/responses"
COUNT = "/v1/responses/input_tokens"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}"
    "{% for call in message.tool_calls %}{{ call.id }}: {{ call.function.name }} in {{ call.function.arguments.city }}"
    "{% endfor %}{% if message.tool_call_id %} for {{ message.tool_call_id }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WEATHER = {
    "type": "function", "name": "get_weather", "description": "It.", "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}  # fmt: skip
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'


@pytest.fixture(scope="module")
def tooled(serve: Callable[..., Any]) -> Any:
    return serve(ServerOptions(tool_call_parser="hermes", reasoning_parser="qwen3"), TEMPLATE)


@pytest.fixture
def client(tooled: Any) -> Iterator[openai.OpenAI]:
    tooled.engine.reset()
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def prompt(server: Any) -> str:
    return server.engine._tokenizer.decode(server.engine.requests[-1].prompt_token_ids)


def finished(url: str, response_id: str) -> dict:
    """A background response, once it has ended."""
    for _ in range(500):
        response = send(url, "GET", f"{RESPONSES}/{response_id}")[2]
        if response["status"] not in ("queued", "in_progress"):
            return response
        time.sleep(0.01)
    raise AssertionError(response)


# --- answers -------------------------------------------------------------------------------------------------


def test_in_full(server: Any) -> None:
    given = {"input": "say", "instructions": "Be.", "metadata": {"a": "b"}, "max_output_tokens": 100}
    body = post(server.url, RESPONSES, given)[2]
    assert prompt(server) == "<|system|>Be.\n<|user|>say\n<|assistant|>"
    (request,) = server.engine.requests
    (message,) = body["output"]
    assert message.pop("id").startswith("msg_") and body["id"].startswith("resp_")
    text = {"type": "output_text", "text": server.engine.answer, "annotations": [], "logprobs": []}
    assert message == {"type": "message", "role": "assistant", "status": "completed", "content": [text]}
    usage, made = body["usage"], len(request.output_token_ids)
    assert (usage["input_tokens"], usage["output_tokens"]) == (len(request.prompt_token_ids), made)
    assert usage["total_tokens"] == len(request.prompt_token_ids) + made
    assert usage["input_tokens_details"]["cached_tokens"] == 3
    assert (body["object"], body["status"], body["error"]) == ("response", "completed", None)
    assert (body["instructions"], body["metadata"]) == ("Be.", {"a": "b"})


def test_parameters_reach_the_engine(server: Any) -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}
    assert post(server.url, RESPONSES, {"input": "say", "max_output_tokens": 9, **given})[0] == 200
    params = server.engine.requests[0].params
    assert {name: getattr(params, name) for name in given} == given and params.max_tokens == 9


def test_an_answer_cut_off_is_incomplete(server: Any) -> None:
    server.engine.finish = "length"
    body = post(server.url, RESPONSES, {"input": "say"})[2]
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_logprobs_where_include_asks_for_them(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="fake/model", input="say", include=["message.output_text.logprobs"], top_logprobs=2
    )
    part = response.output[0].content[0]
    assert "".join(entry.token for entry in part.logprobs) == f"{part.text}<|end|>"
    assert all(len(entry.top_logprobs) <= 2 for entry in part.logprobs)


# --- streams -------------------------------------------------------------------------------------------------


def test_a_stream_adds_up_to_the_response(tooled: Any, client: openai.OpenAI) -> None:
    tooled.engine.answer = f"<think>hm</think>Let me see.\n{CALL % 'Paris'}\n{CALL % 'Rome'}"
    fields: dict[str, Any] = {"model": "fake/model", "input": "say", "tools": [WEATHER], "max_output_tokens": 300}
    with client.responses.stream(**fields) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 4
    last = events[-1].response
    for event in events:
        if event.type == "response.output_item.done":
            assert event.item.id == last.output[event.output_index].id
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == last.output_text == "Let me see."
    streamed = client.responses.retrieve(last.id)
    whole = client.responses.create(**fields)
    for response in (last, streamed, whole):
        thinking, text, *calls = response.output
        assert (thinking.type, thinking.content[0].text, text.content[0].text) == ("reasoning", "hm", "Let me see.")
        assert [(call.name, call.arguments) for call in calls] == [
            ("get_weather", '{"city": "Paris"}'),
            ("get_weather", '{"city": "Rome"}'),
        ]
        assert {item.status for item in response.output} == {"completed"}


def test_an_error_inside_a_stream_is_its_last_event(server: Any) -> None:
    server.engine.error_after = (2, EngineDead("killed by SIGKILL"))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        events = list(client.responses.create(model="fake/model", input="say", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[-1].type, events[-1].code) == ("error", "engine_dead")
    assert "killed by SIGKILL" in events[-1].message


async def test_the_asynchronous_client(server: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        texts = await asyncio.gather(
            *(client.responses.create(model="fake/model", input=f"say {index}") for index in range(8))
        )
    assert {response.output_text for response in texts} == {server.engine.answer}


# --- conversations -------------------------------------------------------------------------------------------


def test_a_response_goes_on_from_an_earlier_one(tooled: Any, client: openai.OpenAI) -> None:
    tooled.engine.answer = f"<think>hm</think>{CALL % 'Paris'}"
    fields: dict[str, Any] = {"model": "fake/model", "tools": [WEATHER], "max_output_tokens": 300}
    first = client.responses.create(**fields, input="say", instructions="Be.")
    call = first.output[-1]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history = f"<|user|>say<|assistant|>(hm){call.call_id}: get_weather in Paris<|tool|>sunny for {call.call_id}"
    client.responses.create(**fields, input=[output], previous_response_id=first.id)
    assert prompt(tooled).endswith(f"{history}<|assistant|>")
    assert "Be." not in prompt(tooled)  # instructions are of one response only
    client.responses.create(**fields, input=[{"role": "user", "content": "say"}, *first.output, output])
    assert prompt(tooled).endswith(f"{history}<|assistant|>")


def test_what_is_not_stored_cannot_be_gone_on_from(client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake/model", input="say", store=False)
    with pytest.raises(openai.NotFoundError, match="previous_response_id"):
        client.responses.create(model="fake/model", input="and?", previous_response_id=response.id)


def test_stored_responses_are_got_listed_and_deleted(tooled: Any, client: openai.OpenAI) -> None:
    response = client.responses.create(model="fake/model", input="say")
    assert client.responses.retrieve(response.id).output_text == response.output_text
    after = client.responses.create(model="fake/model", input="and?", previous_response_id=response.id)
    listed = list(client.responses.input_items.list(after.id, order="asc"))
    assert [item.content[0].text for item in listed] == ["say", tooled.engine.answer, "and?"]
    paged = list(client.responses.input_items.list(after.id, limit=1))
    assert [item.id for item in paged] == [item.id for item in reversed(listed)]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_tokens_are_counted_as_the_engine_sees_them(tooled: Any, client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "fake/model", "input": "say", "instructions": "Be.", "tools": [WEATHER]}
    counted = client.responses.input_tokens.count(**fields)
    client.responses.create(**fields)
    assert counted.input_tokens == len(tooled.engine.requests[-1].prompt_token_ids)


# --- in the background ---------------------------------------------------------------------------------------


def test_in_the_background(server: Any) -> None:
    begun = post(server.url, RESPONSES, {"input": "say", "background": True})[2]
    assert begun["status"] == "queued" and begun["output"] == []
    response = finished(server.url, begun["id"])
    assert response["output"][0]["content"][0]["text"] == server.engine.answer
    assert send(server.url, "POST", f"{RESPONSES}/{begun['id']}/cancel")[2] == response


def test_cancelled_in_the_background(server: Any) -> None:
    server.engine.stall_after = 2
    begun = post(server.url, RESPONSES, {"input": "say", "background": True})[2]
    assert send(server.url, "POST", f"{RESPONSES}/{begun['id']}/cancel")[2]["status"] == "cancelled"
    assert finished(server.url, begun["id"])["status"] == "cancelled"
    assert send(server.url, "GET", "/load")[2] == {"server_load": 0}


def test_failed_in_the_background(server: Any) -> None:
    server.engine.error_after = (2, EngineDead("killed by SIGKILL"))
    begun = post(server.url, RESPONSES, {"input": "say", "background": True})[2]
    response = finished(server.url, begun["id"])
    assert (response["status"], response["error"]["code"]) == ("failed", "engine_dead")


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [RESPONSES, COUNT])
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", ["missing"]),
        ({"input": 5}, "input", ["got int"]),
        ({"input": [{"role": "user"}]}, "input[0].content", ["required"]),
        ({"input": [{"content": "a"}]}, "input[0].role", ["required"]),
        ({"input": [{"role": "king", "content": "a"}]}, "input[0].role", ["'king'"]),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", ["'computer_call'", "function_call"]),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", ["required"]),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type", ["['text']", "'input_image'"],
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", ["'web_search'", "functions"]),
        ({"tools": [{"type": "function"}]}, "tools[0].name", ["required"]),
        ({"tools": [WEATHER]}, "tools", ["--tool-call-parser"]),
        ({"conversation": "conv_1"}, "conversation", ["not implement"]),
        ({"truncation": "auto"}, "truncation", ["'disabled'"]),
        ({"truncation": "some"}, "truncation", []),
        ({"previous_response_id": "resp_1"}, "previous_response_id", ["'resp_1'", "store"]),
        ({"instuctions": "a"}, "instuctions", ["'instructions'"]),
    ],
)  # fmt: skip
def test_refused_by_name(server: Any, route: str, fields: dict, param: str, words: list[str]) -> None:
    status = 404 if param == "previous_response_id" else 400
    assert_refused(post(server.url, route, {"input": "say", **fields}), status, param, *words)
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True, "stream": True}, "background"),
        ({"background": True, "store": False}, "background"),
        ({"top_p": 2}, "top_p"),
        ({"input": "a b " * 300}, "input"),
    ],
)
def test_refused_where_an_answer_is_wanted(server: Any, fields: dict, param: str) -> None:
    assert_refused(post(server.url, RESPONSES, {"input": "say", **fields}), 400, param)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "after=msg_0"])
def test_refused_where_items_are_listed(server: Any, query: str) -> None:
    made = post(server.url, RESPONSES, {"input": "say"})[2]
    answer = send(server.url, "GET", f"{RESPONSES}/{made['id']}/input_items?{query}")
    assert_refused(answer, 400, query.partition("=")[0])


def test_only_what_runs_in_the_background_is_cancelled(server: Any) -> None:
    made = post(server.url, RESPONSES, {"input": "say"})[2]
    assert_refused(send(server.url, "POST", f"{RESPONSES}/{made['id']}/cancel"), 400, "response_id", "background")


def test_what_is_not_kept_to_is_named(server: Any) -> None:
    fields = {"reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"], "zzz": 1}
    status, headers, _ = post(server.url, RESPONSES, {"input": "say", **fields})
    assert status == 200
    assert headers["x-core-ignored-fields"] == "zzz, reasoning, include.reasoning.encrypted_content"


# --- the store -----------------------------------------------------------------------------------------------


def response(number: int) -> ResponseBody:
    return new_body(ResponsesRequest(input="a"), f"resp_{number}", 0, "m")


def test_the_store_forgets_what_was_used_least_lately() -> None:
    store = ResponseStore(2)
    for number in (1, 2):
        store.put(StoredResponse(response(number), [], []))
    store.get("resp_1")
    store.put(StoredResponse(response(3), [], []))
    assert store.get("resp_1").response.id == "resp_1"
    with pytest.raises(NotFound):
        store.get("resp_2")


def test_the_store_is_bounded_in_bytes() -> None:
    store = ResponseStore(100, max_bytes=10_000)
    for number in range(5):
        store.put(StoredResponse(response(number), [], [{"type": "message", "text": "a" * 3000}]))
    store.get("resp_4")
    with pytest.raises(NotFound):
        store.get("resp_0")
    store.put(StoredResponse(response(9), [], [{"type": "message", "text": "a" * 20_000}]))
    with pytest.raises(NotFound):
        store.get("resp_9")
