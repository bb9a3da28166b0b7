"""Forms and forced calls against a real server of the demo model, with the openai SDK as the client."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

import anthropic
import openai
import pydantic
import pytest
from real_server import ONE_THREAD, RealServer, real_server

pytestmark = pytest.mark.slow

OPTIONS = ("--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory", "256MiB", *ONE_THREAD)
ASK = [{"role": "user", "content": "The weather in Paris, please. It is 21 degrees and sunny."}]


class Sky(enum.StrEnum):
    SUNNY = "sunny"
    CLOUDY = "cloudy"


class Place(pydantic.BaseModel):
    name: str = pydantic.Field(pattern="^[A-Z][a-z]{2,12}$")


class Weather(pydantic.BaseModel):
    """What the weather is."""

    place: Place
    degrees: int = pydantic.Field(ge=-50, le=60)
    sky: Sky


class GetTime(pydantic.BaseModel):
    zone: Sky


class Outlook(pydantic.BaseModel):
    """Nothing in it that the SDK of /v1/messages takes out of a schema, as it does with patterns and bounds."""

    morning: Sky
    evening: Sky


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[RealServer]:
    with real_server(demo_model, *OPTIONS) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: RealServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_parse_gives_the_model_that_was_asked_for(client: openai.OpenAI, server: RealServer) -> None:
    parsed = client.chat.completions.parse(model=server.model, messages=ASK, response_format=Weather, seed=1, n=2)
    for choice in parsed.choices:
        assert isinstance(choice.message.parsed, Weather) and choice.finish_reason == "stop"
    with client.chat.completions.stream(model=server.model, messages=ASK, response_format=Weather, seed=2) as events:
        assert isinstance(events.get_final_completion().choices[0].message.parsed, Weather)


def test_responses_parse_too(client: openai.OpenAI, server: RealServer) -> None:
    parsed = client.responses.parse(model=server.model, input="Weather?", text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)


def test_messages_parse_too(server: RealServer) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        parsed = client.messages.parse(model=server.model, messages=ASK, max_tokens=400, output_format=Outlook)
    assert isinstance(parsed.parsed_output, Outlook)


@pytest.mark.parametrize("several", [True, False])
def test_a_tool_that_must_be_called(client: openai.OpenAI, server: RealServer, several: bool) -> None:
    tools = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(GetTime)]
    fields = {
        "model": server.model, "messages": ASK, "tools": tools, "tool_choice": "required",
        "parallel_tool_calls": several, "max_tokens": 400, "seed": 5,
    }  # fmt: skip
    (choice,) = client.chat.completions.parse(**fields).choices
    calls = choice.message.tool_calls
    assert calls and choice.finish_reason == "tool_calls" and (several or len(calls) == 1)
    assert all(isinstance(call.function.parsed_arguments, Weather | GetTime) for call in calls)
    streamed: dict[int, str] = {}
    for chunk in client.chat.completions.create(**fields, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            streamed[piece.index] = streamed.get(piece.index, "") + (piece.function.arguments or "")
    assert [streamed[index] for index in sorted(streamed)] == [call.function.arguments for call in calls]


def test_a_named_tool(client: openai.OpenAI, server: RealServer) -> None:
    tools = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(GetTime)]
    named = {"type": "function", "function": {"name": "GetTime"}}
    (choice,) = client.chat.completions.parse(model=server.model, messages=ASK, tools=tools, tool_choice=named).choices
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "GetTime" and isinstance(call.function.parsed_arguments, GetTime)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"structured_outputs": {"regex": r"\d{3}-\d{4}"}}, r"\d{3}-\d{4}"),
        ({"structured_outputs": {"grammar": 'start: "(" start ")" | "x"'}}, r"\(*x\)*"),
        ({"guided_choice": ["red", "green"]}, "red|green"),
        ({"response_format": {"type": "json_object"}, "temperature": 0.2}, r"(?s)\{.*"),
    ],
)
def test_forms_of_completions(server: RealServer, fields: dict, pattern: str) -> None:
    status, _, body = server.complete("The answer is ", max_tokens=60, n=2, **fields)
    assert status == 200, body
    for choice in body["choices"]:
        if choice["finish_reason"] == "stop" or "grammar" not in str(fields):
            assert re.fullmatch(pattern, choice["text"])


def test_a_bad_form_is_a_400_and_the_server_goes_on(server: RealServer) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"if": {}}, "strict": True}}
    status, _, body = server.complete("x", response_format=bad)
    assert status == 400 and body["error"]["param"] == "response_format" and '"if"' in body["error"]["message"]
    status, _, body = server.complete("x", structured_outputs={"regex": "(((a{1000}){1000}){1000}){1000}"})
    assert status == 400 and body["error"]["param"] == "structured_outputs"
    assert server.complete("x", max_tokens=2)[0] == 200
