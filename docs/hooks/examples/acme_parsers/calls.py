"""Calls: an answer `@name {…}` is one, whole; any other is text."""

from __future__ import annotations

import json
from collections.abc import Iterator

from core.server.parsers.base import ContentDelta, ParserContext, ToolEvent, ToolParser


class Calls(ToolParser):
    """The first character decides: text goes through, what may be a call is held back to the end."""

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._text = ""

    def feed(self, text: str) -> Iterator[ToolEvent]:
        """Text that is no call."""
        self._text += text
        if self._text and not self._text.startswith("@"):
            yield ContentDelta(self._text)
            self._text = ""

    def finish(self) -> Iterator[ToolEvent]:
        """The call, or what turned out to be none."""
        name, _, arguments = self._text.removeprefix("@").partition(" ")
        try:
            is_call = isinstance(json.loads(arguments), dict)
        except ValueError:
            is_call = False
        if is_call:
            yield from self.call(name, arguments)
        elif self._text:
            yield ContentDelta(self._text)
