"""Tools that a request says must be called: the form that makes the model do so, and what reads its answer.

The form is the same for every model, so no parser of a model's own way is needed: one call after another, each
`{"name": …, "arguments": …}`, with the arguments by the function's schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.errors import InvalidRequest
from core.server.parsers.base import (
    ArgumentsDelta,
    ContentDelta,
    ParserContext,
    ToolCallStart,
    ToolEvent,
    ToolParser,
    new_call_id,
)
from core.server.parsers.json_calls import ObjectReader
from core.server.tools import ToolChoice
from core.types import StructuredOutputs

_SEPARATOR = ", "
_END = "}"

Tool = Mapping[str, Any]  # in OpenAI's form, checked


def must_call(tools: Sequence[Tool], choice: ToolChoice | None) -> tuple[Tool, ...]:
    """Those of the tools of which one has to be called; none where the model decides. Raises InvalidRequest."""
    if choice in (None, "none", "auto"):
        return ()
    if not tools:
        raise InvalidRequest("tool_choice: there are no tools to choose from", param="tool_choice")
    if not isinstance(choice, dict):
        return tuple(tools)
    name = choice["function"]["name"]
    named = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not named:
        raise InvalidRequest(f"tool_choice.function.name: {name[:64]!r} is none of the tools", param="tool_choice")
    return named[:1]


def calls_form(tools: Sequence[Tool], *, several: bool) -> StructuredOutputs:
    """Calls of any of the tools: exactly one, or as many as the model likes."""
    rules = [f"start: call{f' ({json.dumps(_SEPARATOR)} call)*' if several else ''}"]
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(tools))))
    for index, tool in enumerate(tools):
        schema = json.dumps(_arguments_schema(tool["function"]))
        rules.append(f"call_{index}: {json.dumps(_head(tool))} %json {schema} {json.dumps(_END)}")
    return StructuredOutputs(grammar="\n".join(rules))


def _head(tool: Tool) -> str:
    return f'{{"name": {json.dumps(tool["function"]["name"])}, "arguments": '


def _arguments_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The function's own, each with a root of its own for its references. Unless strict, what cannot be enforced is
    left to the model."""
    settings = {"lenient": not function.get("strict"), "whitespace_pattern": r"[ \n]{1,40}"}
    return {"type": "object", **(function.get("parameters") or {}), "x-guidance": settings}


class ForcedCallParser(ToolParser):
    """Reads what the form lets through. Arguments are told as they come: nothing of them can become text again."""

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._heads = {_head(tool): tool["function"]["name"] for tool in context.tools}
        self._held = ""
        self._arguments: ObjectReader | None = None  # of the call that is being written

    def feed(self, text: str) -> Iterator[ToolEvent]:
        self._held += text
        before = None
        while self._held and before != self._held:
            before = self._held
            if self._arguments is None:
                yield from self._begin()
            else:
                yield from self._more(self._arguments)

    def finish(self) -> Iterator[ToolEvent]:
        """What was cut off before a function was named is text."""
        if self._held and self._calls == 0:
            yield ContentDelta(self._held)
        self._held = ""

    def _begin(self) -> Iterator[ToolEvent]:
        start = _END + _SEPARATOR if self._calls else ""
        for head, name in self._heads.items():
            if self._held.startswith(start + head):
                self._held = self._held.removeprefix(start + head)
                self._arguments = ObjectReader()
                self._calls += 1
                yield ToolCallStart(self._calls - 1, new_call_id(), name)
                return

    def _more(self, arguments: ObjectReader) -> Iterator[ToolEvent]:
        told = len(arguments.text)
        self._held = arguments.read(self._held)
        if piece := arguments.text[told:]:
            yield ArgumentsDelta(self._calls - 1, piece)
        if arguments.state != "open":
            self._arguments = None
