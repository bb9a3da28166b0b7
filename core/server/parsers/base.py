"""What tells an answer's reasoning and tool calls from its text, while it is being written.

A parser is made anew for each choice of each request. It is fed the text in the pieces in which the detokenizer gives
it, and what it says may not depend on where they are cut: an answer that is not streamed is one piece. Nothing that was
said can be taken back, so a parser holds back what may still turn out to be something else, and `finish` says the rest.
"""

from __future__ import annotations

import abc
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import msgspec


class ContentDelta(msgspec.Struct, frozen=True):
    """More of the message's text."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """More of what the model thinks before it answers."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """A call begins. `index` counts the calls of a choice from 0; `id` is what its result will refer to."""

    index: int
    id: str
    name: str


class ArgumentsDelta(msgspec.Struct, frozen=True):
    """More of a call's arguments. All of a call's, one after the other, are the text of one JSON object."""

    index: int
    text: str


ReasoningEvent = ContentDelta | ReasoningDelta
ToolEvent = ContentDelta | ToolCallStart | ArgumentsDelta
Event = ContentDelta | ReasoningDelta | ToolCallStart | ArgumentsDelta


class ParserContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a parser may know of its request.

    `tools` are the request's own, in OpenAI's form, empty where none may be called; `tool_choice` is then "none", and
    "auto" where the model decides. Where OpenAI's other choices make it call one, no parser of a model's way is used. `prompt` is the text that the
    model goes on from, as the chat template wrote it; `continued` is the beginning of the answer, where the client gave
    it (`continue_final_message`). `options` are those of the parser's plugin.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "auto"
    prompt: str = ""
    continued: str | None = None
    options: Mapping[str, str] = {}


class ReasoningParser(abc.ABC):
    """Parts the reasoning from the answer. What it says is content goes on to the tool parser."""

    #: Whether it has to see the text of special tokens, which otherwise is left out (but for the one that ends the
    #: answer). What it then calls content may hold them.
    special_tokens: ClassVar[bool] = False

    def __init__(self, context: ParserContext) -> None:
        self.context = context

    @abc.abstractmethod
    def feed(self, text: str) -> Iterable[ReasoningEvent]:
        """What is certain now that `text` came."""

    @abc.abstractmethod
    def finish(self) -> Iterable[ReasoningEvent]:
        """The rest, once no text will follow: the answer may have been cut off anywhere."""


class ToolParser(abc.ABC):
    """Parts the calls from the text. Made only for requests whose tools may be called.

    A call that is malformed is text: the client gets it as content, whole.
    """

    #: Whether it has to see the text of special tokens, which otherwise is left out (but for the one that ends the
    #: answer). What it then calls content may hold them.
    special_tokens: ClassVar[bool] = False

    def __init__(self, context: ParserContext) -> None:
        self.context = context
        self._calls = 0

    @abc.abstractmethod
    def feed(self, text: str) -> Iterable[ToolEvent]:
        """What is certain now that `text` came."""

    @abc.abstractmethod
    def finish(self) -> Iterable[ToolEvent]:
        """The rest, once no text will follow: the answer may have been cut off anywhere."""

    def call(self, name: str, arguments: str) -> Iterator[ToolEvent]:
        """The events of the next call, for a parser that has read it whole. `arguments` is a JSON object."""
        index = self._calls
        self._calls += 1
        yield ToolCallStart(index, new_call_id(), name)
        yield ArgumentsDelta(index, arguments)


def new_call_id() -> str:
    """An id for a call of a model that gives none, in OpenAI's form."""
    return f"call_{secrets.token_hex(12)}"
