"""Tools and reasoning over HTTP, with the openai SDK as the client and an engine that answers from a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from core.extensions import Extensions
from core.server.options import ServerOptions

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}"
    "{% for call in message.tool_calls %}{{ call.id }}: {{ call.function.name }} in {{ call.function.arguments.city }}"
    "{% endfor %}{% if message.tool_call_id %} for {{ message.tool_call_id }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
BROKEN = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "strng"}}}}}
ASK = [{"role": "user", "content": "Weather?"}]
PARIS, ROME = ('{"city": "Paris"}', '{"city": "Rome"}')


def written(*arguments: str) -> str:
    """Calls as the model writes them."""
    return "\n".join(f'<tool_call>\n{{"name": "get_weather", "arguments": {each}}}\n</tool_call>' for each in arguments)


Message = tuple[str | None, str | None, list[tuple[str, str]], str | None]


class Client:
    """A server, and the SDK as its client. Whatever is asked is asked twice, whole and as a stream."""

    def __init__(self, server: Any) -> None:
        self.server = server
        headers = {"Connection": "close"}  # nobody closes the client, so no connection may outlive its answer
        self.sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, default_headers=headers)

    def ask(self, answer: str, **fields: Any) -> Message:
        """Content, reasoning, calls and finish reason of what comes when the model writes `answer`."""
        self.server.engine.reset()
        self.server.engine.answer = answer
        fields = {"model": "fake/model", "messages": ASK, **fields}
        (choice,) = self.sdk.chat.completions.create(**fields).choices
        message = choice.message
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
        reasoning = (message.model_extra or {}).get("reasoning_content")
        whole = message.content, reasoning, calls, choice.finish_reason
        assert self._streamed(fields) == whole
        return whole

    def _streamed(self, fields: dict[str, Any]) -> Message:
        content, reasoning, finish_reason = "", "", None
        calls: list[list[str]] = []
        for chunk in self.sdk.chat.completions.create(**fields, stream=True):
            (choice,) = chunk.choices
            assert finish_reason is None, "nothing comes after the finish reason"
            finish_reason = choice.finish_reason
            content += choice.delta.content or ""
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            for piece in choice.delta.tool_calls or []:
                assert len(choice.delta.tool_calls) == 1 and piece.function is not None
                if piece.id is not None:
                    assert piece.index == len(calls) and piece.type == "function" and piece.function.arguments == ""
                    calls.append([piece.function.name or "", ""])
                calls[piece.index][1] += piece.function.arguments or ""
        empty = None if calls or reasoning else ""
        return content or empty, reasoning or None, [(name, text) for name, text in calls], finish_reason

    @property
    def prompt(self) -> str:
        return self.server.engine._tokenizer.decode(self.server.engine.requests[-1].prompt_token_ids)


@pytest.fixture(scope="module")
def client(serve: Callable[..., Any]) -> Client:
    return Client(serve(ServerOptions(tool_call_parser="hermes", reasoning_parser="qwen3"), TEMPLATE))


# --- answers -------------------------------------------------------------------------------------------------


def test_a_call(client: Client) -> None:
    assert client.ask(written(PARIS), tools=[WEATHER]) == (None, None, [("get_weather", PARIS)], "tool_calls")
    assert client.prompt == f"{json.dumps([WEATHER])}<|user|>Weather?<|assistant|>"


def test_reasoning_then_text_then_calls(client: Client) -> None:
    answer = f"<think>It rains.</think>Let me see.\n{written(PARIS, ROME)}"
    calls = [("get_weather", PARIS), ("get_weather", ROME)]
    assert client.ask(answer, tools=[WEATHER]) == ("Let me see.", "It rains.", calls, "tool_calls")


def test_one_call_where_they_may_not_be_parallel(client: Client) -> None:
    message = client.ask(written(PARIS, ROME), tools=[WEATHER], parallel_tool_calls=False)
    assert message == (None, None, [("get_weather", PARIS)], "tool_calls")


def test_text_alone(client: Client) -> None:
    assert client.ask("It is sunny.", tools=[WEATHER]) == ("It is sunny.", None, [], "stop")


def test_reasoning_alone(client: Client) -> None:
    assert client.ask("<think>Well, well", max_tokens=9) == (None, "Well", [], "length")


def test_a_call_that_is_cut_off_is_content(client: Client) -> None:
    answer = written(PARIS)
    content, _, calls, reason = client.ask(answer, tools=[WEATHER], max_tokens=30)
    assert content and answer.startswith(content) and (calls, reason) == ([], "length")


@pytest.mark.parametrize("fields", [{"tool_choice": "none", "tools": [WEATHER]}, {"tools": []}, {}])
def test_without_tools_nothing_is_a_call(client: Client, fields: dict[str, Any]) -> None:
    assert client.ask(written(PARIS), **fields) == (written(PARIS), None, [], "stop")
    assert client.prompt == "<|user|>Weather?<|assistant|>"


def test_each_choice_has_calls_of_its_own(client: Client) -> None:
    client.server.engine.reset()
    client.server.engine.answer = written(PARIS)
    answer = client.sdk.chat.completions.create(model="fake/model", messages=ASK, tools=[WEATHER], n=3)
    calls = [call for choice in answer.choices for call in choice.message.tool_calls or []]
    assert len(calls) == 3 == len({call.id for call in calls})


def test_logprobs_are_of_all_tokens_whatever_the_text_became(client: Client) -> None:
    client.server.engine.reset()
    client.server.engine.answer = written(PARIS)
    chunks = client.sdk.chat.completions.create(
        model="fake/model", messages=ASK, tools=[WEATHER], logprobs=True, stream=True
    )
    logprobs = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert len(logprobs) == len(client.server.engine.requests[0].output_token_ids)


def test_the_sdks_own_accumulation_of_a_stream(client: Client) -> None:
    client.server.engine.reset()
    client.server.engine.answer = f"First.\n{written(PARIS, ROME)}"
    with client.sdk.chat.completions.stream(model="fake/model", messages=ASK, tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "First."
    assert [call.function.arguments for call in message.tool_calls or []] == [PARIS, ROME]


# --- conversations -------------------------------------------------------------------------------------------


def test_calls_and_their_results_reach_the_template(client: Client) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert client.ask("It is sunny.", messages=messages)[0] == "It is sunny."
    assert client.prompt == (
        "<|user|>Weather?<|assistant|>(hm)call_1: get_weather in Paris<|tool|>sunny for call_1<|assistant|>"
    )


def test_an_answer_goes_back_as_the_sdk_gives_it(client: Client) -> None:
    client.server.engine.reset()
    client.server.engine.answer = f"<think>hm</think>{written(PARIS)}"
    create = client.sdk.chat.completions.create
    message = create(model="fake/model", messages=ASK, tools=[WEATHER]).choices[0].message
    create(model="fake/model", messages=[*ASK, message.model_dump()], tools=[WEATHER])
    assert "get_weather in Paris" in client.prompt and "(hm)" in client.prompt


def test_an_answer_that_continues_its_reasoning(client: Client) -> None:
    messages = [*ASK, {"role": "assistant", "content": "<think>It"}]
    fields = {"continue_final_message": True}
    assert client.ask(" rains.</think>Yes.", messages=messages, extra_body=fields)[:2] == ("Yes.", " rains.")


# --- calls that must be made ---------------------------------------------------------------------------------


NAMED = {"type": "function", "function": {"name": "get_weather"}}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


def forced(*arguments: str) -> str:
    return ", ".join(f'{{"name": "get_weather", "arguments": {each}}}' for each in arguments)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_be_made(client: Client, choice: Any) -> None:
    message = client.ask(forced(PARIS), tools=[WEATHER, TIME], tool_choice=choice)
    assert message == (None, None, [("get_weather", PARIS)], "tool_calls")


def test_several_calls_that_must_be_made(client: Client) -> None:
    answer = f'{forced(PARIS)}, {{"name": "get_time", "arguments": {{}}}}, {forced(ROME)}'
    message = client.ask(answer, tools=[WEATHER, TIME], tool_choice="required")
    calls = [("get_weather", PARIS), ("get_time", "{}"), ("get_weather", ROME)]
    assert message == (None, None, calls, "tool_calls")


def test_a_forced_call_that_is_cut_off_shows_what_there_is(client: Client) -> None:
    content, _, calls, reason = client.ask(forced(PARIS), tools=[WEATHER], tool_choice="required", max_tokens=9)
    assert content and forced(PARIS).startswith(content) and (calls, reason) == ([], "length")
    _, _, calls, reason = client.ask(forced(PARIS), tools=[WEATHER], tool_choice="required", max_tokens=45)
    assert PARIS.startswith(calls[0][1]) and calls[0][1] != PARIS and reason == "length"


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"tool_choice": "required"}, " (', ' call)*"),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ""),
        ({"tool_choice": NAMED}, ""),
    ],
)
def test_how_many_calls_the_form_allows(client: Client, fields: dict[str, Any], pattern: str) -> None:
    client.ask(forced(PARIS), tools=[WEATHER, TIME], **fields)
    form = client.server.engine.requests[-1].params.structured_outputs
    start, _, rest = form.grammar.partition("\n")
    assert start == f"start: call{pattern}".replace("'", '"')
    assert ("get_time" in rest) == (fields["tool_choice"] == "required")


def test_no_parser_is_needed_for_a_call_that_must_be_made(serve: Callable[..., Any]) -> None:
    client = Client(serve(ServerOptions(), TEMPLATE))
    assert client.ask(forced(PARIS), tools=[WEATHER], tool_choice=NAMED)[2] == [("get_weather", PARIS)]


def test_strict_is_kept_where_a_call_must_be_made(client: Client) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    client.server.engine.answer = forced(PARIS)
    raw = client.sdk.chat.completions.with_raw_response
    answer = raw.create(model="fake/model", messages=ASK, tools=[strict], tool_choice="required")
    assert "x-core-ignored-fields" not in answer.headers


def test_an_answer_of_a_given_form_has_no_reasoning(client: Client) -> None:
    answer = '{"a": "<think>"}'
    assert client.ask(answer, response_format={"type": "json_object"}) == (answer, None, [], "stop")


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [WEATHER, BROKEN], "tool_choice": "required"}, "tools"),
        ({"tools": [WEATHER, {"type": "custom", "custom": {"name": "x"}}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
    ],
)
def test_refused_by_name(client: Client, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.sdk.chat.completions.create(model="fake/model", messages=ASK, **fields)
    assert caught.value.param == param


def test_what_is_not_enforced_is_named(client: Client) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    raw = client.sdk.chat.completions.with_raw_response
    answer = raw.create(model="fake/model", messages=ASK, tools=[WEATHER, strict])
    assert answer.headers["x-core-ignored-fields"] == "tools%5B1%5D.function.strict"


# --- parsers of plugins --------------------------------------------------------------------------------------

PARSERS = """
from core.server.parsers.base import ContentDelta, ReasoningDelta, ReasoningParser, ToolParser

class Shout(ToolParser):
    special_tokens = True

    def __init__(self, context):
        super().__init__(context)
        self.text = ""

    def feed(self, text):
        self.text += text
        return ()

    def finish(self):
        word = self.context.options["word"]
        tool = self.context.tools[0]["function"]["name"]
        content, found, city = self.text.partition(word)
        yield ContentDelta(content)
        if found:
            yield from self.call(tool, '{"city": "%s"}' % city)

class Fails(ReasoningParser):
    def feed(self, text):
        yield ReasoningDelta("so far so good")
        raise OSError("a secret of ours")

    def finish(self):
        return ()
"""
PARSER_HOOKS = {"tool_parsers": {"shout": "Shout"}, "reasoning_parsers": {"fails": "Fails"}}


def test_a_plugins_tool_parser(serve: Callable[..., Any], install: Callable[..., Extensions]) -> None:
    extensions = install("loud", PARSERS, plugin_opt=("loud.word=CALL",), **PARSER_HOOKS)
    client = Client(serve(ServerOptions(tool_call_parser="shout"), TEMPLATE, extensions))
    assert client.ask("Now CALLRome", tools=[WEATHER]) == ("Now ", None, [("get_weather", ROME)], "tool_calls")
    assert client.ask("Now CALLRome") == ("Now CALLRome", None, [], "stop")


def test_special_tokens_are_seen_by_parsers_that_ask_for_them(
    serve: Callable[..., Any], install: Callable[..., Extensions]
) -> None:
    """But for the one that ends the answer. No other request's text changes."""
    extensions = install("loud", PARSERS, plugin_opt=("loud.word=<|call|>",), **PARSER_HOOKS)
    client = Client(serve(ServerOptions(tool_call_parser="shout"), TEMPLATE, extensions))
    assert client.ask("Now <|call|>Rome", tools=[WEATHER])[:3] == ("Now ", None, [("get_weather", ROME)])
    assert client.ask("Now Rome", tools=[WEATHER])[:3] == ("Now Rome", None, [])
    assert client.ask("Now <|call|>Rome")[:3] == ("Now Rome", None, [])


def test_a_parser_that_raises_fails_its_request_alone(
    serve: Callable[..., Any], install: Callable[..., Extensions]
) -> None:
    client = Client(serve(ServerOptions(reasoning_parser="fails"), TEMPLATE, install("loud", PARSERS, **PARSER_HOOKS)))
    create = client.sdk.chat.completions.create
    with pytest.raises(openai.InternalServerError) as caught:
        create(model="fake/model", messages=ASK)
    assert caught.value.code == "internal_error" and "secret" not in str(caught.value)
    with pytest.raises(openai.APIError, match="internal error"):
        list(create(model="fake/model", messages=ASK, stream=True))
    assert client.sdk.completions.create(model="fake/model", prompt="a").choices[0].text
