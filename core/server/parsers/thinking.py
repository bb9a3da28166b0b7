"""Reasoning between `<think>` and `</think>`, ahead of the answer."""

from __future__ import annotations

from collections.abc import Iterator

from core.server.parsers.base import ContentDelta, ParserContext, ReasoningDelta, ReasoningEvent, ReasoningParser
from core.server.parsers.markers import begun

_OPEN = "<think>"
_CLOSE = "</think>"


class _ThinkingParser(ReasoningParser):
    """Before the reasoning, in it, or behind it. Reasoning that is cut off before its end is reasoning."""

    #: Whether an answer without `<think>` begins in the reasoning, where the prompt does not tell.
    opened_by_template: bool

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        inside = _opened(context)
        self._begins_inside = self.opened_by_template if inside is None else inside
        self._state = "behind" if inside is False else "before"
        self._held = ""

    def feed(self, text: str) -> Iterator[ReasoningEvent]:
        self._held += text
        if self._state == "before":
            self._begin()
        if self._state == "inside":
            yield from self._reason()
        if self._state == "behind" and self._held:
            yield ContentDelta(self._take(len(self._held)))

    def finish(self) -> Iterator[ReasoningEvent]:
        inside = self._state == "inside" or (self._state == "before" and self._begins_inside)
        if self._held:
            rest = self._take(len(self._held))
            yield ReasoningDelta(rest) if inside else ContentDelta(rest)

    def _begin(self) -> None:
        """A `<think>` opens the reasoning, and is passed over where it is open already."""
        text = self._held.lstrip()
        if text.startswith(_OPEN):
            self._state, self._held = "inside", text.removeprefix(_OPEN)
        elif not _OPEN.startswith(text):
            self._state = "inside" if self._begins_inside else "behind"

    def _reason(self) -> Iterator[ReasoningEvent]:
        end = self._held.find(_CLOSE)
        reasoning = self._take(end if end >= 0 else len(self._held) - begun(self._held, _CLOSE))
        if reasoning:
            yield ReasoningDelta(reasoning)
        if end >= 0:
            self._take(len(_CLOSE))
            self._state = "behind"

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken


def _opened(context: ParserContext) -> bool | None:
    """Whether the answer begins in the reasoning, as far as what stands before it tells."""
    if context.continued is not None:
        return context.continued.rfind(_OPEN) > context.continued.rfind(_CLOSE)
    before = context.prompt.rstrip()
    if before.endswith((_OPEN, _CLOSE)):
        return before.endswith(_OPEN)
    return None


class DeepSeekR1ReasoningParser(_ThinkingParser):
    """DeepSeek-R1 and its distillations: the template opens the reasoning, the model only closes it."""

    opened_by_template = True


class Qwen3ReasoningParser(_ThinkingParser):
    """Qwen3: the model opens the reasoning itself, or answers at once."""

    opened_by_template = False
