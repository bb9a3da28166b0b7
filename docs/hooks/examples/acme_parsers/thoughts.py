"""Reasoning: the lines at the beginning of an answer that begin with `#`."""

from __future__ import annotations

from collections.abc import Iterator

from core.server.parsers.base import ContentDelta, ParserContext, ReasoningDelta, ReasoningEvent, ReasoningParser


class Thoughts(ReasoningParser):
    """A line is told once it is whole, as its first character decides what it is."""

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._thinking = True
        self._line = ""

    def feed(self, text: str) -> Iterator[ReasoningEvent]:
        """Whole lines while it thinks, everything after that."""
        self._line += text
        while self._thinking and "\n" in self._line:
            line, _, self._line = self._line.partition("\n")
            yield self._event(line + "\n")
        if not self._thinking and self._line:
            yield ContentDelta(self._line)
            self._line = ""

    def finish(self) -> Iterator[ReasoningEvent]:
        """The line that was cut off."""
        if self._line:
            yield self._event(self._line)

    def _event(self, line: str) -> ReasoningEvent:
        self._thinking = self._thinking and line.startswith("#")
        return ReasoningDelta(line.removeprefix("#")) if self._thinking else ContentDelta(line)
