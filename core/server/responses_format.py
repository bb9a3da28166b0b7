"""Answers of OpenAI's Responses API, whole and as events. Source: OpenAI's API reference, Responses and Streaming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from core.engine.output import ChoiceDelta
from core.server.chat_format import ChatFormat
from core.server.errors import describe
from core.server.generation import Batch, Generation
from core.server.parsers.base import ArgumentsDelta, ContentDelta, Event, ReasoningDelta, ToolCallStart
from core.server.responses import ChosenLogprob
from core.server.responses_protocol import Item, ResponsesRequest, new_id
from core.server.sse import NamedEvents

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

# --- a response ----------------------------------------------------------------------------------------------


class InputDetails(msgspec.Struct):
    """Of the input's tokens, those that the prefix cache had."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """Of the output's tokens, those of the reasoning: they are not counted apart."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(msgspec.Struct):
    """Why a response stopped early."""

    reason: str


class ResponseError(msgspec.Struct):
    """Why a response failed."""

    code: str
    message: str


class ResponseBody(msgspec.Struct, kw_only=True):
    """A response: what was asked for, and the items it consists of so far."""

    id: str
    created_at: int
    model: str
    status: Status
    output: list[Item]
    instructions: str | None
    previous_response_id: str | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    tools: list[Any]
    tool_choice: Any
    text: dict[str, Any]
    reasoning: dict[str, Any] | None
    temperature: float | None
    top_p: float | None
    max_output_tokens: int | None
    store: bool
    background: bool
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    truncation: str = "disabled"
    object: Literal["response"] = "response"


def new_body(body: ResponsesRequest, response_id: str, created: int, model: str) -> ResponseBody:
    """A response that has nothing yet."""
    return ResponseBody(
        id=response_id,
        created_at=created,
        model=model,
        status="in_progress",
        output=[],
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        tools=[{"strict": None, **msgspec.to_builtins(tool)} for tool in body.tools or ()],
        tool_choice=body.tool_choice or "auto",
        text={"format": (body.text.format if body.text is not None else None) or {"type": "text"}},
        reasoning=body.reasoning,
        temperature=body.temperature,
        top_p=body.top_p,
        max_output_tokens=body.max_output_tokens,
        store=body.store is not False,
        background=bool(body.background),
    )


# --- events --------------------------------------------------------------------------------------------------


def _event(name: str, *fields: tuple[str, type]) -> type[msgspec.Struct]:
    """The struct of one kind of event: every event has a number, and its type is its name."""
    made: type[msgspec.Struct] = msgspec.defstruct(
        name.title().replace(".", "").replace("_", ""),
        [("sequence_number", int), *fields],
        tag=name,
        module=__name__,
    )
    return made


_ITEM = (("output_index", int), ("item_id", str))
_PART = (*_ITEM, ("content_index", int))

Created = _event("response.created", ("response", ResponseBody))
InProgress = _event("response.in_progress", ("response", ResponseBody))
Completed = _event("response.completed", ("response", ResponseBody))
Stopped = _event("response.incomplete", ("response", ResponseBody))
ItemAdded = _event("response.output_item.added", ("output_index", int), ("item", dict))
ItemDone = _event("response.output_item.done", ("output_index", int), ("item", dict))
PartAdded = _event("response.content_part.added", *_PART, ("part", dict))
PartDone = _event("response.content_part.done", *_PART, ("part", dict))
TextDelta = _event("response.output_text.delta", *_PART, ("delta", str), ("logprobs", list))
TextDone = _event("response.output_text.done", *_PART, ("text", str), ("logprobs", list))
ReasoningTextDelta = _event("response.reasoning_text.delta", *_PART, ("delta", str))
ReasoningTextDone = _event("response.reasoning_text.done", *_PART, ("text", str))
CallDelta = _event("response.function_call_arguments.delta", *_ITEM, ("delta", str))
CallDone = _event("response.function_call_arguments.done", *_ITEM, ("name", str), ("arguments", str))
Failure = _event("error", ("code", str), ("message", str), ("param", Any))


class ResponseEvents(NamedEvents):
    """A response's events. An error is an event of its own, the last one."""

    def __init__(self, form: ResponseFormat) -> None:
        super().__init__()
        self._form = form

    async def fail(self, error: Exception, request_id: str) -> Any:
        _, described = describe(error, request_id)
        detail = described.error
        failure = Failure(self._form.next_number(), detail.code or detail.type, detail.message, detail.param)
        await self.write([self.event(failure)])
        return await self.close()


class ResponseFormat:
    """One answer. The chat's format parses it; its items follow one another, as the events do.

    Used either for `events` and `ending`, or for `whole`: `response` is the same then.
    """

    def __init__(self, generation: Generation, chat: ChatFormat, response: ResponseBody) -> None:
        self.response = response
        self._generation = generation
        self._chat = chat
        self._numbers = 0
        self._logprobs: list[ChosenLogprob] = []  # of the delta at hand, until a piece of text takes them

    def whole(self, delta: ChoiceDelta) -> ResponseBody:
        """The complete response."""
        for _ in (*self.events({0: delta}), *self.ending()):
            pass
        return self.response

    def events(self, batch: Batch) -> Iterator[bytes]:
        """The events of one batch."""
        for delta in batch.values():
            if not self._numbers:
                yield self._written(Created, self.response)
                yield self._written(InProgress, self.response)
            events = self._chat.events(0, delta)
            found = self._chat.logprobs(delta)
            self._logprobs += found.content if found is not None else []
            for event in events:
                yield from self._of(event)
            if delta.finish_reason is not None:
                self._finish(self._chat.finish_reason(0, delta) or "stop")

    def ending(self) -> list[bytes]:
        """The events after the last batch."""
        closing = list(self._closed())
        self.response.usage = self._usage()
        last = Stopped if self.response.status == "incomplete" else Completed
        return [*closing, self._written(last, self.response)]

    def next_number(self) -> int:
        """The number of the event that comes next."""
        self._numbers += 1
        return self._numbers - 1

    def _finish(self, reason: str) -> None:
        self.response.status = "completed"
        if reason in ("length", "deadline"):
            self.response.status = "incomplete"
            why = "max_output_tokens" if reason == "length" else reason
            self.response.incomplete_details = Incomplete(why)

    def _usage(self) -> ResponseUsage:
        usage = self._generation.usage()
        cached = InputDetails(usage.prompt_tokens_details.cached_tokens)
        return ResponseUsage(usage.prompt_tokens, cached, usage.completion_tokens, OutputDetails(), usage.total_tokens)

    def _written(self, kind: type[msgspec.Struct], *values: Any) -> bytes:
        return NamedEvents.event(kind(self.next_number(), *values))

    # --- items ---

    def _of(self, event: Event) -> Iterator[bytes]:
        match event:
            case ContentDelta(text):
                yield from self._text("message", text)
            case ReasoningDelta(text):
                yield from self._text("reasoning", text)
            case ToolCallStart(_, call_id, name):
                yield from self._open(
                    {"id": new_id("fc"), "type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
                )
            case ArgumentsDelta(_, text):
                self._last["arguments"] += text
                yield self._written(CallDelta, *self._place, text)

    def _text(self, kind: str, text: str) -> Iterator[bytes]:
        if not self.response.output or self._last["type"] != kind:
            yield from self._open(_empty(kind))
            yield self._written(PartAdded, *self._place, 0, self._part)
        self._part["text"] += text
        if kind == "reasoning":
            yield self._written(ReasoningTextDelta, *self._place, 0, text)
            return
        logprobs, self._logprobs = self._logprobs, []
        self._part["logprobs"] += logprobs
        yield self._written(TextDelta, *self._place, 0, text, logprobs)

    def _open(self, item: Item) -> Iterator[bytes]:
        yield from self._closed()
        self.response.output.append(item)
        item["status"] = "in_progress"
        yield self._written(ItemAdded, len(self.response.output) - 1, item)

    def _closed(self) -> Iterator[bytes]:
        """The end of the last item, if there is one. An answer that was cut off leaves it incomplete."""
        if not self.response.output:
            return
        item, place = self._last, self._place
        item["status"] = "incomplete" if self.response.status == "incomplete" else "completed"
        if item["type"] == "function_call":
            yield self._written(CallDone, *place, item["name"], item["arguments"])
        else:
            text = self._part["text"]
            if item["type"] == "reasoning":
                yield self._written(ReasoningTextDone, *place, 0, text)
            else:
                yield self._written(TextDone, *place, 0, text, self._part["logprobs"])
            yield self._written(PartDone, *place, 0, self._part)
        yield self._written(ItemDone, place[0], item)

    @property
    def _last(self) -> Item:
        return self.response.output[-1]

    @property
    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self._last["content"][0]
        return part

    @property
    def _place(self) -> tuple[int, str]:
        return len(self.response.output) - 1, self._last["id"]


def _empty(kind: str) -> Item:
    """A message or a reasoning without its text."""
    if kind == "reasoning":
        return {"id": new_id("rs"), "type": kind, "summary": [], "content": [{"type": "reasoning_text", "text": ""}]}
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"id": new_id("msg"), "type": kind, "role": "assistant", "content": [part]}
