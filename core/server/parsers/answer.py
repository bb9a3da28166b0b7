"""From one choice's text to the parts of a message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.server.parsers.base import (
    ArgumentsDelta,
    ContentDelta,
    Event,
    ReasoningEvent,
    ReasoningParser,
    ToolCallStart,
    ToolEvent,
    ToolParser,
)


class AnswerParser:
    """Tells the reasoning from the answer, then the calls from the answer's text, by whichever parsers there are.

    Of several calls only the first is kept unless they may be `parallel`.
    """

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolParser | None, *, parallel: bool = True) -> None:
        self.called = False  # at least one call began
        self._reasoning = reasoning
        self._tools = tools
        self._parallel = parallel

    def feed(self, text: str) -> Iterable[Event]:
        """What is certain now that `text` came. To be read to its end."""
        content = (ContentDelta(text),)
        if self._reasoning is None:
            return content if self._tools is None else self._answer(content)
        return self._answer(self._reasoning.feed(text))

    def finish(self) -> Iterator[Event]:
        """The rest, once no text will follow. To be read to its end."""
        if self._reasoning is not None:
            yield from self._answer(self._reasoning.finish())
        if self._tools is not None:
            yield from self._kept(self._tools.finish())

    def _answer(self, events: Iterable[ReasoningEvent]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, ContentDelta) and self._tools is not None:
                yield from self._kept(self._tools.feed(event.text))
            elif event.text:
                yield event

    def _kept(self, events: Iterable[ToolEvent]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, ToolCallStart | ArgumentsDelta) and event.index > 0 and not self._parallel:
                continue
            self.called = self.called or isinstance(event, ToolCallStart)
            yield event
