"""Calls as Hermes 2 Pro, Qwen2.5 and Qwen3 write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Iterator

from core.server.parsers.base import ParserContext, ToolEvent
from core.server.parsers.json_calls import ObjectReader, read_call
from core.server.parsers.markers import begun
from core.server.parsers.states import StatesToolParser

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"


class HermesToolParser(StatesToolParser):
    """Text, calls, text. A call is told once its object is whole: what has been sent cannot become content again.

    Whitespace around a call goes with its markers. A name that is none of the request's tools is passed on, as models
    that invent one recover from the error they are given. Where an answer ends, a missing end marker is forgiven.
    """

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context, "text")
        self._object = ObjectReader()

    def _step(self) -> Iterator[ToolEvent]:
        match self._state:
            case "text":
                yield from self._text()
            case "call":
                yield from self._call()
            case "behind":
                self._pass_end()

    def _rest(self) -> str:
        match self._state:
            case "text":
                return self._held
            case "call":
                return self._opening + self._object.text
        return ""

    def _text(self) -> Iterator[ToolEvent]:
        at = self._held.find(_OPEN)
        before = self._held[: at if at >= 0 else len(self._held) - begun(self._held, _OPEN)].rstrip()
        yield from self._content(before)
        self._held = self._held.removeprefix(before)
        if at >= 0:
            end = self._held.index(_OPEN) + len(_OPEN)
            self._opening, self._held = self._held[:end], self._held[end:]
            self._object = ObjectReader()
            self._state = "call"

    def _call(self) -> Iterator[ToolEvent]:
        self._held = self._object.read(self._held)
        if self._object.state == "open":
            return
        call = read_call(self._object.text) if self._object.state == "complete" else None
        if call is not None:
            yield from self.call(*call)
            self._after_call = True
            self._state = "behind"
        else:
            yield from self._no_call(self._opening + self._object.text)

    def _pass_end(self) -> None:
        text = self._held.lstrip()
        if text.startswith(_CLOSE):
            self._held = text.removeprefix(_CLOSE)
            self._state = "text"
        elif not _CLOSE.startswith(text):
            self._state = "text"
