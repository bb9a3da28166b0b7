"""Calls as Llama 3.1 and later write them: the whole answer is `{"name": …, "parameters": {…}}`, several with `;`."""

from __future__ import annotations

from collections.abc import Iterator

from core.server.parsers.base import ParserContext, ToolEvent
from core.server.parsers.json_calls import ObjectReader, read_call
from core.server.parsers.states import StatesToolParser

_TAG = "<|python_tag|>"  # before the first call; seldom seen, since special tokens are left out of the text
_SEPARATOR = ";"


class Llama3JsonToolParser(StatesToolParser):
    """Calls from the beginning on, then text. As nothing marks a call, its name has to be one of the request's tools.

    Any other object is the model's answer in JSON, and content.
    """

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context, "before")
        self._names = {tool["function"]["name"] for tool in context.tools}
        self._object = ObjectReader()

    def _step(self) -> Iterator[ToolEvent]:
        match self._state:
            case "before":
                self._pass_opening(_SEPARATOR if self._calls else _TAG)
            case "call":
                yield from self._call()
            case "text":
                yield from self._all_held()

    def _rest(self) -> str:
        match self._state:
            case "before" if not self._calls:
                return self._held
            case "call":
                return self._opening + self._object.text
        return ""

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
            yield from self._no_call(self._opening + self._object.text)
