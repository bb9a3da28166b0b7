"""Answers of Anthropic's Messages API, whole and as events. Source: Anthropic's API reference, Messages and Streaming."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from core.engine.output import ChoiceDelta
from core.server.chat_format import ChatFormat
from core.server.generation import Batch, Generation
from core.server.parsers.base import ArgumentsDelta, ContentDelta, Event, ReasoningDelta, ToolCallStart
from core.server.responses import ChatFinishReason
from core.server.sse import NamedEvents

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]

# --- a message -----------------------------------------------------------------------------------------------


class Text(msgspec.Struct, tag="text"):
    """A block of text."""

    text: str = ""


class Thinking(msgspec.Struct, tag="thinking"):
    """What the model thought first. Nobody signs it here."""

    thinking: str = ""
    signature: str = ""


class ToolUse(msgspec.Struct, tag="tool_use"):
    """A call for the client to make."""

    id: str
    name: str
    input: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


Block = Text | Thinking | ToolUse


class MessageUsage(msgspec.Struct):
    """Token counts; the prompt's are parted into what the prefix cache had and what it had not."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0


class MessageBody(msgspec.Struct, tag="message"):
    """The assistant's turn."""

    id: str
    model: str
    content: list[Block]
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"


class TokenCount(msgspec.Struct):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


# --- events --------------------------------------------------------------------------------------------------


class MessageStart(msgspec.Struct, tag="message_start"):
    """The message, before its content."""

    message: MessageBody


class Ping(msgspec.Struct, tag="ping"):
    """Nothing."""


class BlockStart(msgspec.Struct, tag="content_block_start"):
    """A block, before what it will hold."""

    index: int
    content_block: Block


class TextDelta(msgspec.Struct, tag="text_delta"):
    """More of a text."""

    text: str


class ThinkingDelta(msgspec.Struct, tag="thinking_delta"):
    """More of what the model thinks."""

    thinking: str


class InputDelta(msgspec.Struct, tag="input_json_delta"):
    """More of the JSON of a call's input."""

    partial_json: str


Delta = TextDelta | ThinkingDelta | InputDelta


class BlockDelta(msgspec.Struct, tag="content_block_delta"):
    """What a block gets."""

    index: int
    delta: Delta


class BlockStop(msgspec.Struct, tag="content_block_stop"):
    """A block is complete."""

    index: int


class Ending(msgspec.Struct):
    """Why the message ends."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag="message_delta"):
    """What is known of the message at its end."""

    delta: Ending
    usage: MessageUsage


class MessageStop(msgspec.Struct, tag="message_stop"):
    """The last event."""


_STARTS: dict[type, type[Text] | type[Thinking]] = {ContentDelta: Text, ReasoningDelta: Thinking}


class MessageFormat:
    """One answer. The chat's format parses it; the blocks follow one another, as the events do."""

    def __init__(self, generation: Generation, chat: ChatFormat) -> None:
        self._generation = generation
        self._chat = chat
        self._blocks = 0
        self._open: type | None = None  # what the last block holds
        self._begun = False
        self._ending: Ending | None = None

    def whole(self, delta: ChoiceDelta) -> MessageBody:
        """The complete message."""
        content: list[Block] = []
        for event in _joined(self._chat.events(0, delta)):
            match event:
                case ContentDelta(text):
                    content.append(Text(text))
                case ReasoningDelta(text):
                    content.append(Thinking(text))
                case ToolCallStart(_, call_id, name):
                    content.append(ToolUse(call_id, name))
                case ArgumentsDelta(_, text):
                    call = content[-1]
                    assert isinstance(call, ToolUse), "arguments follow their call"
                    msgspec.json.decode(text)
                    call.input = msgspec.Raw(text.encode())
        ending = _ending(self._chat.finish_reason(0, delta), delta)
        return MessageBody(
            self._generation.id,
            self._generation.state.model,
            content,
            self.usage(),
            ending.stop_reason,
            ending.stop_sequence,
        )

    def events(self, batch: Batch) -> Iterator[bytes]:
        """The events of one batch."""
        for delta in batch.values():
            if not self._begun:
                self._begun = True
                message = MessageBody(self._generation.id, self._generation.state.model, [], self.usage())
                yield from self._written(MessageStart(message), Ping())
            for event in self._chat.events(0, delta):
                yield from self._written(*self._of(event))
            if (reason := self._chat.finish_reason(0, delta)) is not None:
                self._ending = _ending(reason, delta)

    def ending(self) -> list[bytes]:
        """The events after the last batch."""
        assert self._ending is not None, "a generation's last delta has a finish reason"
        closing = [BlockStop(self._blocks - 1)] if self._open is not None else []
        return list(self._written(*closing, MessageDelta(self._ending, self.usage()), MessageStop()))

    def usage(self) -> MessageUsage:
        """Token counts so far."""
        usage = self._generation.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return MessageUsage(usage.prompt_tokens - cached, cached, usage.completion_tokens)

    @staticmethod
    def _written(*events: msgspec.Struct) -> Iterator[bytes]:
        return map(NamedEvents.event, events)

    def _of(self, event: Event) -> Iterator[msgspec.Struct]:
        match event:
            case ToolCallStart(_, call_id, name):
                yield from self._start(ToolUse(call_id, name))
            case ArgumentsDelta(_, text):
                yield BlockDelta(self._blocks - 1, InputDelta(text))
            case ContentDelta(text) | ReasoningDelta(text):
                kind = _STARTS[type(event)]
                if self._open is not kind:
                    yield from self._start(kind())
                more = TextDelta(text) if isinstance(event, ContentDelta) else ThinkingDelta(text)
                yield BlockDelta(self._blocks - 1, more)

    def _start(self, block: Block) -> Iterator[msgspec.Struct]:
        if self._open is not None:
            yield BlockStop(self._blocks - 1)
        yield BlockStart(self._blocks, block)
        self._open = type(block)
        self._blocks += 1


def _joined(events: Iterable[Event]) -> list[Event]:
    """Neighbours of a kind as one; each call's start stays what it is."""
    found: list[Any] = []
    for event in events:
        if found and not isinstance(event, ToolCallStart) and type(event) is type(found[-1]):
            found[-1] = msgspec.structs.replace(event, text=found[-1].text + event.text)
        else:
            found.append(event)
    return found


def _ending(reason: ChatFinishReason | None, delta: ChoiceDelta) -> Ending:
    if reason == "tool_calls":
        return Ending("tool_use", None)
    if reason == "length":
        return Ending("max_tokens", None)
    sequence = delta.stop_reason if isinstance(delta.stop_reason, str) else None
    return Ending("end_turn" if sequence is None else "stop_sequence", sequence)
