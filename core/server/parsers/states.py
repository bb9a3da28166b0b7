"""Parsers of tool calls by states, and readers of one call: what all of the core's own have in common."""

from __future__ import annotations

import abc
import sys
from collections.abc import Iterator
from typing import ClassVar, Literal

from core.server.parsers.base import ContentDelta, ParserContext, ToolEvent, ToolParser


class StatesToolParser(ToolParser):
    """Text is held until a step uses it, in a way that the state says. In the state `text` it is content."""

    def __init__(self, context: ParserContext, state: str) -> None:
        super().__init__(context)
        self._state = state
        self._held = ""  # not yet used
        self._opening = ""  # what stands before a call and is content if it is none
        self._after_call = False  # and nothing but whitespace since, which goes with the call

    def feed(self, text: str) -> Iterator[ToolEvent]:
        """Steps until one changes nothing."""
        self._held += text
        before = None
        while before != (self._state, self._held):
            before = (self._state, self._held)
            yield from self._step()

    def finish(self) -> Iterator[ToolEvent]:
        """What was cut off is content."""
        rest, self._held = self._rest(), ""
        yield from self._content(rest)

    @abc.abstractmethod
    def _step(self) -> Iterator[ToolEvent]:
        """Use what can be used of the text that is held, or go on to another state."""

    @abc.abstractmethod
    def _rest(self) -> str:
        """What was read and is no part of a call, now that nothing follows."""

    def _content(self, text: str) -> Iterator[ToolEvent]:
        if text and not (self._after_call and not text.strip()):
            self._after_call = False
            yield ContentDelta(text)

    def _no_call(self, text: str) -> Iterator[ToolEvent]:
        """What was begun as a call is none, but `text`, as all that follows may be."""
        yield from self._content(text)
        self._state = "text"

    def _all_held(self) -> Iterator[ToolEvent]:
        """Content, whatever it is."""
        yield from self._content(self._held)
        self._held = ""


class Reader(abc.ABC):
    """A call that comes in pieces: finds its end, or the place from which on it can be none.

    `text` is what was read, whitespace before the call included: where it is no call after all, it is content.
    """

    #: Characters of one call; what is longer is none.
    longest: ClassVar[int] = sys.maxsize

    def __init__(self) -> None:
        self.text = ""
        self.state: Literal["open", "complete", "broken"] = "open"

    def read(self, text: str) -> str:
        """Take from `text` what belongs to the call; the rest is returned, once `state` says that there may be one."""
        room = self.longest - len(self.text)
        for at, char in enumerate(text):
            if at == room or not self._take(char):
                self.state = "broken"
                self.text += text[:at]
                return text[at:]
            if self._is_end(char):
                self.state = "complete"
                self.text += text[: at + 1]
                return text[at + 1 :]
        self.text += text
        return ""

    @abc.abstractmethod
    def _take(self, char: str) -> bool:
        """Whether `char` may come next."""

    @abc.abstractmethod
    def _is_end(self, char: str) -> bool:
        """Whether `char`, which was taken, is the last one."""
