"""How a choice of /v1/chat/completions looks, whole and in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import UNSET

from core.engine.output import ChoiceDelta
from core.server.answer import ChoiceFormat
from core.server.parsers.answer import AnswerParser
from core.server.parsers.base import ArgumentsDelta, ContentDelta, Event, ReasoningDelta, ToolCallStart
from core.server.responses import (
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatFinishReason,
    ChatLogprobs,
    ChatMessage,
    ChatPiece,
    ChatResponse,
    MessageToolCall,
    MoreArguments,
    ToolCallPiece,
    chat_logprobs,
)
from core.tokenization import Tokenizer


class ChatFormat(ChoiceFormat):
    """The first chunk of a choice carries the role, the next ones what its parser makes of its text.

    `special_tokens`: the text has them, because a parser has to see them. The one that ends it is no one's to see.
    """

    whole_kind = ChatResponse
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, new_parser: Callable[[], AnswerParser], *, special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._new_parser = new_parser
        self._special_tokens = special_tokens
        self._parsers: dict[int, AnswerParser] = {}

    def opening(self, index: int, delta: ChoiceDelta) -> ChatChunkChoice:
        """The role."""
        del delta
        return ChatChunkChoice(index, ChatPiece(role="assistant", content=""), None, None, None)

    def chunks(self, index: int, delta: ChoiceDelta) -> list[ChatChunkChoice]:
        """One for each event. The last of a choice has its finish reason; logprobs go with the first of their delta."""
        chunks = [ChatChunkChoice(index, _piece(event), None, None, None) for event in self.events(index, delta)]
        if not chunks and (delta.logprobs or delta.finish_reason is not None):
            chunks = [ChatChunkChoice(index, ChatPiece(), None, None, None)]
        if chunks:
            chunks[0].logprobs = self.logprobs(delta)
            chunks[-1].finish_reason, chunks[-1].stop_reason = self.finish_reason(index, delta), delta.stop_reason
        return chunks

    def whole(self, index: int, delta: ChoiceDelta) -> ChatChoice:
        """The message."""
        message = _message(self.events(index, delta))
        reason = self.finish_reason(index, delta)
        return ChatChoice(index, message, self.logprobs(delta), reason, delta.stop_reason)

    def events(self, index: int, delta: ChoiceDelta) -> list[Event]:
        """What a delta brings, as the choice's parser has it."""
        if index not in self._parsers:
            self._parsers[index] = self._new_parser()
        parser = self._parsers[index]
        text = self._without_end(delta) if self._special_tokens else delta.text
        events = list(parser.feed(text)) if text else []
        return [*events, *parser.finish()] if delta.finish_reason is not None else events

    def _without_end(self, delta: ChoiceDelta) -> str:
        if (
            delta.finish_reason != "stop"
            or not delta.token_ids
            or delta.token_ids[-1] not in self._tokenizer.special_ids
        ):
            return delta.text
        return delta.text.removesuffix(self._tokenizer.token_text(delta.token_ids[-1]))

    def finish_reason(self, index: int, delta: ChoiceDelta) -> ChatFinishReason | None:
        """Why the choice ended, after its events were taken."""
        called = delta.finish_reason == "stop" and self._parsers[index].called
        return "tool_calls" if called else delta.finish_reason

    def logprobs(self, delta: ChoiceDelta) -> ChatLogprobs | None:
        """Those of a delta's tokens, if the request asked for them."""
        if delta.logprobs is None:
            return None
        return chat_logprobs(self._tokenizer, delta.token_ids, delta.logprobs)


def _piece(event: Event) -> ChatPiece:
    match event:
        case ContentDelta(text):
            return ChatPiece(content=text)
        case ReasoningDelta(text):
            return ChatPiece(reasoning_content=text)
        case ToolCallStart(index, call_id, name):
            return ChatPiece(tool_calls=[ToolCallPiece(index, CalledFunction(name), call_id, "function")])
        case ArgumentsDelta(index, text):
            return ChatPiece(tool_calls=[ToolCallPiece(index, MoreArguments(text))])


def _message(events: Iterable[Event]) -> ChatMessage:
    content, reasoning = "", ""
    calls: list[MessageToolCall] = []
    for event in events:
        match event:
            case ContentDelta(text):
                content += text
            case ReasoningDelta(text):
                reasoning += text
            case ToolCallStart(_, call_id, name):
                calls.append(MessageToolCall(call_id, CalledFunction(name)))
            case ArgumentsDelta(index, text):
                calls[index].function.arguments += text
    return ChatMessage(
        content=content or (None if calls or reasoning else ""),
        reasoning_content=reasoning or UNSET,
        tool_calls=calls or UNSET,
    )
