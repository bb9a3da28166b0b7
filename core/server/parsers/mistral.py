"""Calls as Mistral's models write them, behind `[TOOL_CALLS]`: an array of objects, or a name and its arguments.

    [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
    [TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g{}                since the tokenizer's version 11
    [TOOL_CALLS]f[CALL_ID]0a1b2c3d4[ARGS]{"a": 1}       since its version 13, the id in some

Source: mistral-common's instruct tokenizers.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Iterator
from typing import Any

import msgspec

from core.server.parsers.base import ArgumentsDelta, ParserContext, ToolCallStart, ToolEvent
from core.server.parsers.json_calls import ObjectReader, read_call
from core.server.parsers.markers import begun
from core.server.parsers.states import StatesToolParser

_MARKER = "[TOOL_CALLS]"
_HEAD = re.compile(r"\s*(?P<name>[\w.-]{1,64})(\[CALL_ID\](?P<id>\w{1,64}))?(\[ARGS\])?\s*", re.ASCII)
#: No head is longer, but for spaces, of which there are none between special tokens.
_LONGEST_HEAD = 256
_ID_CHARACTERS = string.ascii_letters + string.digits


class MistralToolParser(StatesToolParser):
    """Text, then calls, each told once its object is whole. Ids are of nine letters and digits: its templates insist."""

    special_tokens = True

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context, "text")
        self._name: tuple[str, str | None] | None = None  # with its id, of a call that is no object of an array
        self._object = ObjectReader()

    def _step(self) -> Iterator[ToolEvent]:
        match self._state:
            case "text":
                yield from self._text()
            case "head":
                yield from self._head()
            case "object":
                yield from self._call()
            case "between":
                self._pass_separator()

    def _rest(self) -> str:
        """An array that lacks its end is forgiven."""
        match self._state:
            case "head":
                return self._opening + self._held
            case "object":
                return self._opening + self._object.text
        return self._held

    def _text(self) -> Iterator[ToolEvent]:
        at = self._held.find(_MARKER)
        before = self._held[: at if at >= 0 else len(self._held) - begun(self._held, _MARKER)]
        if at < 0 and self._after_call and not before.strip():
            return  # whitespace behind a call goes with it, should nothing follow
        yield from self._content(before)
        self._held = self._held.removeprefix(before)
        if at >= 0:
            self._opening, self._held = _MARKER, self._held.removeprefix(_MARKER)
            self._state = "head"

    def _head(self) -> Iterator[ToolEvent]:
        spaces = len(self._held) - len(self._held.lstrip())
        if self._held[spaces:].startswith("["):
            self._begin_object(spaces + 1, None)
            return
        at = self._held.find("{", 0, _LONGEST_HEAD)
        if at < 0 and len(self._held) < _LONGEST_HEAD:
            return
        head = _HEAD.fullmatch(self._held[:at]) if at >= 0 else None
        if head is not None:
            self._begin_object(at, (head["name"], head["id"]))
        else:
            yield from self._no_call(self._opening)

    def _begin_object(self, length: int, name: tuple[str, str | None] | None) -> None:
        """An object comes behind the next `length` characters."""
        self._opening, self._held = self._opening + self._held[:length], self._held[length:]
        self._name, self._object = name, ObjectReader()
        self._state = "object"

    def _call(self) -> Iterator[ToolEvent]:
        self._held = self._object.read(self._held)
        if self._object.state == "open":
            return
        call = self._read() if self._object.state == "complete" else None
        if call is None:
            yield from self._no_call(self._opening + self._object.text)
            return
        name, arguments, call_id = call
        index = self._calls
        self._calls += 1
        yield ToolCallStart(index, call_id or _new_id(), name)
        yield ArgumentsDelta(index, arguments)
        self._opening, self._after_call = "", True
        self._state = "between" if self._name is None else "text"

    def _read(self) -> tuple[str, str, str | None] | None:
        """Name, arguments and id, if there is one, of what is written."""
        if self._name is None:
            call = read_call(self._object.text)
            return None if call is None else (*call, None)
        arguments, (name, call_id) = self._object.text.strip(), self._name
        try:
            msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            return None
        return name, arguments, call_id

    def _pass_separator(self) -> None:
        """Behind a call of an array: another one, or its end."""
        text = self._held.lstrip()
        if text.startswith(","):
            self._begin_object(len(self._held) - len(text) + 1, None)
        elif text:
            self._held, self._state = text.removeprefix("]"), "text"


def _new_id() -> str:
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))
