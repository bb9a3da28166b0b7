"""Built-in parsers: what they tell from a text does not depend on how it is cut, and loses nothing of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.server.parsers.answer import AnswerParser
from core.server.parsers.base import ArgumentsDelta, ContentDelta, Event, ParserContext, ReasoningDelta, ToolCallStart
from core.server.parsers.hermes import HermesToolParser
from core.server.parsers.llama3_json import Llama3JsonToolParser
from core.server.parsers.mistral import MistralToolParser
from core.server.parsers.pythonic import PythonicToolParser
from core.server.parsers.thinking import DeepSeekR1ReasoningParser, Qwen3ReasoningParser

TOOLS = tuple({"type": "function", "function": {"name": name}} for name in ("get_weather", "add"))
CALL = '{"name": "get_weather", "arguments": {"city": "Zürich"}}'
ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}'

Result = tuple[str, str, list[tuple[str, str]]]  # reasoning, content, calls as (name, arguments)


def parsed(parser: AnswerParser, pieces: Iterable[str]) -> Result:
    """What came of a text, after checking that its calls begin and go on in order, with ids of their own."""
    events: list[Event] = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish()
    reasoning, content, calls, ids = "", "", [], set()
    for event in events:
        match event:
            case ReasoningDelta(text):
                assert not content and not calls, "reasoning comes first"
                reasoning += text
            case ContentDelta(text):
                content += text
            case ToolCallStart(index, call_id, name):
                assert index == len(calls) and call_id not in ids
                ids.add(call_id)
                calls.append((name, ""))
            case ArgumentsDelta(index, text):
                assert index == len(calls) - 1
                calls[index] = calls[index][0], calls[index][1] + text
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)
    assert parser.called == bool(calls)
    return reasoning, content, calls


def hermes() -> AnswerParser:
    return AnswerParser(None, HermesToolParser(ParserContext(tools=TOOLS)))


def llama() -> AnswerParser:
    return AnswerParser(None, Llama3JsonToolParser(ParserContext(tools=TOOLS)))


def mistral() -> AnswerParser:
    return AnswerParser(None, MistralToolParser(ParserContext(tools=TOOLS)))


def pythonic() -> AnswerParser:
    return AnswerParser(None, PythonicToolParser(ParserContext(tools=TOOLS)))


def qwen3(**context: Any) -> AnswerParser:
    return AnswerParser(Qwen3ReasoningParser(ParserContext(**context)), None)


def deepseek_r1(**context: Any) -> AnswerParser:
    return AnswerParser(DeepSeekR1ReasoningParser(ParserContext(**context)), None)


def qwen3_with_hermes() -> AnswerParser:
    context = ParserContext(tools=TOOLS)
    return AnswerParser(Qwen3ReasoningParser(context), HermesToolParser(context))


# --- any text, cut anywhere ----------------------------------------------------------------------------------

FRAGMENTS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", CALL, ADD, ";", "\n", " ", "{", "}", "[", "]",
    '"', "\\", ':', "<", "text", "1", '{"name": "add", "parameters": {}}', '{"name": "no_tool", "arguments": {}}',
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", f"[{CALL}, {ADD}]", "add", "{}", ",", "add(", ")", "add(a=1)", "a=", "'", "(",
    "[add(b=[2, {'c': '}'}], d=-1.5), get_weather()]",
    '{"name": "add", "arguments": {"a": "</tool_call>"}}', '{"name": "add", "arguments": []}', '{"a": "\\"}\\\\"}',
)  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8).map("".join)
makers = st.sampled_from([hermes, llama, mistral, pythonic, qwen3, deepseek_r1, qwen3_with_hermes])


def cut(text: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@given(text=texts, make=makers, places=st.lists(st.integers(0, 500), max_size=12))
def test_where_a_text_is_cut_changes_nothing(text: str, make: Callable[[], AnswerParser], places: list[int]) -> None:
    whole = parsed(make(), [text])
    assert parsed(make(), cut(text, places)) == whole
    assert parsed(make(), list(text)) == whole


@given(text=texts, make=st.sampled_from([hermes, llama, mistral, pythonic]))
def test_what_is_no_call_is_content_as_it_stands(text: str, make: Callable[[], AnswerParser]) -> None:
    _, content, calls = parsed(make(), [text])
    if not calls:
        assert content == text


arguments_of_calls = st.dictionaries(
    st.text(max_size=3), st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(FRAGMENTS), max_size=3
)
prose = st.text(st.characters(exclude_characters="<{;", exclude_categories=["Z", "C"]), min_size=1, max_size=8)
malformed = st.sampled_from(
    [
        "<tool_call>no object</tool_call>",
        '<tool_call>{"name": "add"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1]}}</tool_call>',
        "<tool_call>{'name': 'add'}</tool_call>",
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": "\n"}}</tool_call>',
        "<tool_call>" + '{"a":' * 5000 + "1" + "}" * 5000 + "</tool_call>",
    ]
)


@given(st.data())
def test_hermes_tells_calls_from_prose_and_from_what_is_malformed(data: st.DataObject) -> None:
    text, content, calls = "", "", []
    for kind in data.draw(st.lists(st.sampled_from(["prose", "malformed", "call"]), max_size=6)):
        if kind == "call":
            arguments = json.dumps(data.draw(arguments_of_calls), ensure_ascii=data.draw(st.booleans()))
            calls.append(("add", arguments))
            text += f'\n<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>'
        else:
            piece = data.draw(prose if kind == "prose" else malformed)
            text, content = text + piece, content + piece
    assert parsed(hermes(), cut(text, data.draw(st.lists(st.integers(0, 500), max_size=5)))) == ("", content, calls)


@pytest.mark.parametrize("make", [qwen3, deepseek_r1])
@given(text=texts)
def test_reasoning_ends_at_the_first_end_marker(make: Callable[[], AnswerParser], text: str) -> None:
    opened = text.lstrip().startswith("<think>")
    body = text.lstrip().removeprefix("<think>") if opened else text
    if opened or (make is deepseek_r1):
        reasoning, _, content = body.partition("</think>")
        assert parsed(make(), [text]) == (reasoning, content, [])
    else:
        assert parsed(make(), [text]) == ("", text, [])


# --- Hermes --------------------------------------------------------------------------------------------------


def hermes_call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


WEATHER = ("get_weather", '{"city": "Zürich"}')


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (hermes_call(CALL), "", [WEATHER]),
        (f"Let me see.\n\n{hermes_call(CALL)}\n", "Let me see.", [WEATHER]),
        (f"{hermes_call(CALL)}\n{hermes_call(CALL)}", "", [WEATHER, WEATHER]),
        (f"{hermes_call(CALL)}\n\nDone.\n", "\n\nDone.\n", [WEATHER]),
        (f"<tool_call>{CALL}", "", [WEATHER]),
        (f"<tool_call>{CALL}\n</tool", "", [WEATHER]),
        (f"<tool_call>{CALL}}}\n</tool_call>", "}\n</tool_call>", [WEATHER]),
        (f"<tool_call>{CALL[:-3]}", f"<tool_call>{CALL[:-3]}", []),
        ("a < b <tool", "a < b <tool", []),
        (f"<tool_call>oops {hermes_call(CALL)}", "<tool_call>oops", [WEATHER]),
        ('<tool_call>{"arguments": {}, "id": 5, "name": "add"}</tool_call>', "", [("add", "{}")]),
        (hermes_call('{"name": "invented", "arguments": {}}'), "", [("invented", "{}")]),
        (hermes_call('{"name": "add", "arguments": {"a": "</tool_call>"}}'), "", [("add", '{"a": "</tool_call>"}')]),
        ("  \n", "  \n", []),
    ],
)
def test_hermes(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(hermes(), [text]) == ("", content, calls)


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    parser = hermes()
    told = [[event.text for event in parser.feed(piece)] for piece in ("Hello", " <", "b>", "\n", "<tool_call>{")]
    assert told == [["Hello"], [], [" <b>"], [], []]


def test_a_call_is_told_once_it_is_whole() -> None:
    parser = hermes()
    assert list(parser.feed(f"<tool_call>{CALL[:-1]}")) == []
    start, arguments = parser.feed("}")
    assert isinstance(start, ToolCallStart) and isinstance(arguments, ArgumentsDelta)
    assert start.id.startswith("call_")


# --- Llama ---------------------------------------------------------------------------------------------------

LLAMA_CALL = '{"name": "add", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (LLAMA_CALL, "", [("add", '{"a": 1}')]),
        (f"<|python_tag|>{LLAMA_CALL}", "", [("add", '{"a": 1}')]),
        (f"\n{LLAMA_CALL}; {CALL}\n", "", [("add", '{"a": 1}'), WEATHER]),
        (f"{LLAMA_CALL} and so on", " and so on", [("add", '{"a": 1}')]),
        (f"I call {LLAMA_CALL}", f"I call {LLAMA_CALL}", []),
        ('{"name": "Alice", "parameters": {}}', '{"name": "Alice", "parameters": {}}', []),
        ('{"name": "add"}', '{"name": "add"}', []),
        (LLAMA_CALL[:-1], LLAMA_CALL[:-1], []),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
        ("<|pyth", "<|pyth", []),
    ],
)
def test_llama3_json(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(llama(), [text]) == ("", content, calls)


# --- Mistral -------------------------------------------------------------------------------------------------

CALLS = "[TOOL_CALLS]"
SUM = ("add", '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"{CALLS} [{CALL}]", "", [WEATHER]),
        (f"{CALLS}[{CALL}, {CALL} ]\n", "", [WEATHER, WEATHER]),
        (f'{CALLS}add{{"a": 1}}', "", [SUM]),
        (f'{CALLS}add{{"a": 1}}{CALLS}get_weather[ARGS]{{"city": "Zürich"}}', "", [SUM, WEATHER]),
        (f'{CALLS}add[CALL_ID]0a1b2c3d4[ARGS]{{"a": 1}}', "", [SUM]),
        (f'I look. {CALLS} add {{"a": 1}} Done.', "I look.  Done.", [SUM]),
        (f"{CALLS}[{CALL}", "", [WEATHER]),
        (f"{CALLS}[{CALL}, ", ", ", [WEATHER]),
        (f"{CALLS}[{CALL[:-1]}", f"{CALLS}[{CALL[:-1]}", []),
        (f"{CALLS}add{{1}}", f"{CALLS}add{{1}}", []),
        (f"{CALLS}no name {{}}", f"{CALLS}no name {{}}", []),
        (f"{CALLS}[]", f"{CALLS}[]", []),
        (f'{CALLS}oops {CALLS}add{{"a": 1}}', f"{CALLS}oops ", [SUM]),
        (f"{CALLS}{'x' * 300}{{}}", f"{CALLS}{'x' * 300}{{}}", []),
        (f"{CALLS}add", f"{CALLS}add", []),
        ("[TOOL_", "[TOOL_", []),
    ],
)
def test_mistral(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(mistral(), [text]) == ("", content, calls)
    assert parsed(mistral(), list(text)) == ("", content, calls)


def test_ids_that_mistrals_templates_take() -> None:
    given = list(MistralToolParser(ParserContext(tools=TOOLS)).feed(f"{CALLS}add[CALL_ID]0a1b2c3d4[ARGS]{{}}"))
    assert isinstance(given[0], ToolCallStart) and given[0].id == "0a1b2c3d4"
    (start, _) = MistralToolParser(ParserContext(tools=TOOLS)).feed(f"{CALLS}add{{}}")
    assert isinstance(start, ToolCallStart) and len(start.id) == 9 and start.id.isalnum()


# --- Python ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('[get_weather(city="Zürich")]', "", [WEATHER]),
        (" [ add ( a = 1 )]", " [ add ( a = 1 )]", []),
        ("[add(a=1), get_weather(city='Zürich'),]\n", "", [SUM, WEATHER]),
        ("[add(a=1)] and so on", " and so on", [SUM]),
        ("[add(a=1)", "", [SUM]),
        ("[add()]", "", [("add", "{}")]),
        ("[add(a=[-1, 2.5, (True, null)], b={'c': {}, 'd': ')'})]", "",
         [("add", '{"a": [-1, 2.5, [true, null]], "b": {"c": {}, "d": ")"}}')]),
        (r"[add(a='it\'s \d \u00fc')]", "", [("add", '{"a": "it\'s \\\\d ü"}')]),
        ("[1, 2]", "[1, 2]", []),
        ("[drop(a=1)]", "[drop(a=1)]", []),
        ("add(a=1)", "add(a=1)", []),
        ("[add(1)]", "[add(1)]", []),
        ("[add(**{'a': 1})]", "[add(**{'a': 1})]", []),
        ("[add(a=1, a=2)]", "[add(a=1, a=2)]", []),
        ("[add(a=print())]", "[add(a=print())]", []),
        ("[add(a=b'1')]", "[add(a=b'1')]", []),
        ("[add(a=1e999)]", "[add(a=1e999)]", []),
        ("[add(a={1: 2})]", "[add(a={1: 2})]", []),
        (r"[add(a='\ud800')]", r"[add(a='\ud800')]", []),
        ("[add(a=1", "[add(a=1", []),
        ("[add(a=1), add(b=)]", ", add(b=)]", [SUM]),
    ],
)  # fmt: skip
def test_pythonic(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(pythonic(), [text]) == ("", content, calls)
    assert parsed(pythonic(), list(text)) == ("", content, calls)


@pytest.mark.parametrize(
    "value",
    ["[" * 40 + "]" * 40, "-" * 60_000 + "1", "9" * 10_000, "1" + "+1" * 30_000, "'" + "x" * 70_000 + "'", "f'{1}'",
     "a" + ".b" * 20_000, "not " * 15_000 + "1", "lambda: " * 8_000 + "1"],
)  # fmt: skip
def test_hostile_python_is_text(value: str) -> None:
    text = f"[add(a={value})]"
    assert parsed(pythonic(), [text]) == ("", text, [])


@given(st.data())
def test_pythonic_tells_any_literals(data: st.DataObject) -> None:
    values = st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    )
    names = st.sampled_from(["a", "b", "city", "ü"])
    given_ = data.draw(st.lists(st.dictionaries(names, values, max_size=3), min_size=1, max_size=3))
    written = [f"add({', '.join(f'{name}={value!r}' for name, value in arguments.items())})" for arguments in given_]
    text = f"[{', '.join(written)}]"
    _, content, calls = parsed(pythonic(), cut(text, data.draw(st.lists(st.integers(0, 500), max_size=5))))
    assert content == "" and [json.loads(arguments) for _, arguments in calls] == given_


# --- reasoning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text", "reasoning", "content"),
    [
        (qwen3, "<think>\nwhy\n</think>\n\nbecause", "\nwhy\n", "\n\nbecause"),
        (qwen3, "because", "", "because"),
        (qwen3, "<think>cut off", "cut off", ""),
        (qwen3, "<thin", "", "<thin"),
        (deepseek_r1, "why</think>because", "why", "because"),
        (deepseek_r1, "<think>why</think>because", "why", "because"),
        (deepseek_r1, "cut off </thi", "cut off </thi", ""),
    ],
)
def test_reasoning(make: Callable[[], AnswerParser], text: str, reasoning: str, content: str) -> None:
    assert parsed(make(), [text]) == (reasoning, content, [])


@pytest.mark.parametrize("make", [qwen3, deepseek_r1])
@pytest.mark.parametrize(
    ("context", "inside"),
    [
        ({"prompt": "<|assistant|><think>\n"}, True),
        ({"prompt": "<|assistant|><think>\n\n</think>\n\n"}, False),  # as Qwen3's template does without thinking
        ({"prompt": "Hi<think>", "continued": "Hi"}, False),
        ({"continued": "<think>why"}, True),
        ({"continued": "<think>why</think>be"}, False),
    ],
)
def test_what_stands_before_the_answer_tells_whether_it_begins_in_the_reasoning(
    make: Callable[..., AnswerParser], context: dict[str, Any], inside: bool
) -> None:
    reasoning, content, _ = parsed(make(**context), ["one</think>two"])
    assert (reasoning, content) == (("one", "two") if inside else ("", "one</think>two"))


def test_calls_are_looked_for_behind_the_reasoning_only() -> None:
    text = f"<think>{hermes_call(ADD)}</think>\n\n{hermes_call(CALL)}"
    assert parsed(qwen3_with_hermes(), [text]) == (hermes_call(ADD), "", [WEATHER])


def test_one_call_where_they_may_not_be_parallel() -> None:
    parser = AnswerParser(None, HermesToolParser(ParserContext(tools=TOOLS)), parallel=False)
    assert parsed(parser, [f"{hermes_call(CALL)}{hermes_call(ADD)} End."]) == ("", " End.", [WEATHER])
