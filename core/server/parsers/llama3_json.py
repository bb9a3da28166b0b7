"""Calls as Llama 3.1 and later write them: the whole answer is `{"name": …, "parameters": {…}}`, several with `;`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from core.server.parsers.base import ContentDelta, ParserContext, ToolEvent, ToolParser
from core.server.parsers.json_calls import ObjectReader, read_call

_TAG = "<|python_tag|>"  # before the first call; seldom seen, since special tokens are left out of the text
_SEPARATOR = ";"


class Llama3JsonToolParser(ToolParser):
    """Calls from the beginning on, then text. As nothing marks a call, its name has to be one of the request's tools.

    Any other object is the model's answer in JSON, and content.
    """

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._names = {tool["function"]["name"] for tool in context.tools}
        self._state: Literal["before", "call", "text"] = "before"
        self._held = ""  # not yet used, because a call may follow
        self._opening = ""  # what stands before the object
        self._object = ObjectReader()

    def feed(self, text: str) -> Iterator[ToolEvent]:
        self._held += text
        before = None
        while before != self._state:
            before = self._state
            match self._state:
                case "before":
                    self._pass_opening(_SEPARATOR if self._calls else _TAG)
                case "call":
                    yield from self._call()
                case "text" if self._held:
                    yield ContentDelta(self._held)
                    self._held = ""

    def finish(self) -> Iterator[ToolEvent]:
        rest = ""
        match self._state:
            case "before" if not self._calls:
                rest = self._held
            case "call":
                rest = self._opening + self._object.text
        if rest:
            yield ContentDelta(rest)
        self._held = ""

    def _pass_opening(self, marker: str) -> None:
        text = self._held.lstrip()
        rest = text.removeprefix(marker).lstrip()
        if rest.startswith("{"):
            self._opening, self._held = self._held.removesuffix(rest), rest
            self._object = ObjectReader()
            self._state = "call"
        elif rest and not marker.startswith(text):
            self._state = "text"

    def _call(self) -> Iterator[ToolEvent]:
        self._held = self._object.read(self._held)
        if self._object.state == "open":
            return
        call = read_call(self._object.text) if self._object.state == "complete" else None
        if call is not None and call[0] in self._names:
            yield from self.call(*call)
            self._state = "before"
        else:
            yield ContentDelta(self._opening + self._object.text)
            self._state = "text"
