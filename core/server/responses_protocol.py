"""Bodies of OpenAI's Responses API, and the same conversations as chats. Source: OpenAI's API reference, Responses.

A conversation is a list of *items*: messages, calls, what calls gave, and reasoning. What a chat cannot say is refused
here, so that errors have the paths of the body that the client sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest
from core.server.forms import ResponseFormat
from core.server.protocol import ROLES, ChatRequest, Message, PositiveInt, Priority, Request, RequestId, TextPart
from core.server.tools import FunctionCall, ToolCall, ToolChoice

#: What `include` may ask for and get: the log probabilities of the text's tokens.
LOGPROBS = "message.output_text.logprobs"

_TEXT_PARTS = ("input_text", "output_text", "text")

Item = dict[str, Any]  # as stored and as listed: with `id`, `type` and what its type has


# --- items ---------------------------------------------------------------------------------------------------


class Part(msgspec.Struct, frozen=True):
    """A part of a message's content, of what a call gave, or of reasoning."""

    type: str
    text: str | None = None


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the input. Without a type it is a message."""

    type: str = "message"
    id: str | None = None
    # message
    role: str | None = None
    content: str | list[Part] | None = None
    # function_call and function_call_output
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None

    def item(self, where: str) -> Item:
        """The item with an id, as it is stored and listed. Raises InvalidRequest for one that is not complete."""
        read = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._output,
            "reasoning": self._reasoning,
        }.get(self.type)
        if read is None:
            message = f"{where}.type: {self.type[:64]!r} is not implemented; known: {', '.join(_ID_PREFIX)}"
            raise InvalidRequest(message, param=f"{where}.type", code="unsupported")
        return {"id": self.id or new_id(_ID_PREFIX[self.type]), "type": self.type, **read(where)}

    def _message(self, where: str) -> Item:
        role, content = _given(self.role, f"{where}.role"), _given(self.content, f"{where}.content")
        if role not in ROLES:
            message = f"{where}.role: {role[:64]!r} is none of {', '.join(ROLES)}"
            raise InvalidRequest(message, param=f"{where}.role")
        kind = "output_text" if role == "assistant" else "input_text"
        parts = [{"type": kind, "text": text} for text in _texts(content, f"{where}.content")]
        return {"role": role, "status": "completed", "content": parts}

    def _call(self, where: str) -> Item:
        return {
            "call_id": _given(self.call_id, f"{where}.call_id"),
            "name": _given(self.name, f"{where}.name"),
            "arguments": _given(self.arguments, f"{where}.arguments"),
            "status": "completed",
        }

    def _output(self, where: str) -> Item:
        output = "\n".join(_texts(_given(self.output, f"{where}.output"), f"{where}.output"))
        return {"call_id": _given(self.call_id, f"{where}.call_id"), "output": output, "status": "completed"}

    def _reasoning(self, where: str) -> Item:
        parts = self.content if isinstance(self.content, list) else []
        text = [{"type": "reasoning_text", "text": part.text} for part in parts if part.text]
        return {"summary": [], "content": text}


_ID_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}_{secrets.token_hex(24)}"


def _given(value: Any, where: str) -> Any:
    if value is None:
        raise InvalidRequest(f"{where}: the field is required", param=where)
    return value


def _texts(content: str | Sequence[Part], where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    for index, part in enumerate(content):
        if part.type not in _TEXT_PARTS:
            param = f"{where}[{index}].type"
            message = f"{param}: this model's modalities are ['text']; got {part.type[:64]!r}"
            raise InvalidRequest(message, param=param, code="unsupported")
        _given(part.text, f"{where}[{index}].text")
    return [part.text or "" for part in content]


# --- items as a chat -----------------------------------------------------------------------------------------


def chat_messages(items: Iterable[Item]) -> list[Message]:
    """Items as a chat's messages: reasoning, text and calls of one turn of the assistant's are one message."""
    messages: list[Message] = []
    thought: str | None = None
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            thought = "".join(part["text"] for part in item["content"]) or None
            continue
        if kind == "function_call_output":
            messages.append(Message(role="tool", tool_call_id=item["call_id"], content=item["output"]))
        elif kind == "function_call":
            _add_call(messages, item, thought)
        else:
            parts = [TextPart(type="text", text=part["text"]) for part in item["content"]]
            messages.append(Message(role=item["role"], content=parts, reasoning_content=thought))
        thought = None
    return messages


def _add_call(messages: list[Message], item: Item, thought: str | None) -> None:
    call = ToolCall(id=item["call_id"], function=FunctionCall(name=item["name"], arguments=item["arguments"]))
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant":
        messages.append(Message(role="assistant", tool_calls=[call], reasoning_content=thought))
    else:
        calls = [*(last.tool_calls or ()), call]
        messages[-1] = msgspec.structs.replace(last, tool_calls=calls)


# --- requests ------------------------------------------------------------------------------------------------


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool, which here is flat. Functions are the one type that these models know."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self, where: str) -> dict[str, Any]:
        """The tool as chats have it. Raises InvalidRequest for one that OpenAI's servers would run."""
        if self.type != "function":
            message = f"{where}.type: {self.type[:64]!r} is not implemented; these models know functions only"
            raise InvalidRequest(message, param=f"{where}.type", code="unsupported")
        function = {
            "name": _given(self.name, f"{where}.name"),
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }
        return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


class TextSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the text is to look. `format` is flat where a chat's response_format is nested."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None

    def response_format(self) -> dict[str, Any] | None:
        """The format as chats have it; None for plain text."""
        if not self.format or self.format.get("type") == "text":
            return None
        if self.format.get("type") != "json_schema":
            return self.format
        schema = {key: value for key, value in self.format.items() if key != "type"}
        return {"type": "json_schema", "json_schema": schema}


class ConversationRequest(Request, kw_only=True):
    """Body of POST /v1/responses/input_tokens: what a response's prompt is made of."""

    input: str | list[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: dict[str, Any] | None = None  # a model thinks as its template has it: the answer's headers say so
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None
    prompt: Any = None
    personality: Any = None

    def items(self) -> list[Item]:
        """The input's items. Raises InvalidRequest."""
        self._refuse()
        if self.input is None or self.input == []:
            raise InvalidRequest("input: it is missing; give a text or a list of items", param="input")
        given = [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        return [item.item(f"input[{index}]") for index, item in enumerate(given)]

    def chat(self, items: Iterable[Item]) -> ChatRequest:
        """The conversation of `items` as a chat: the earlier ones, then the input. Raises InvalidRequest."""
        system = [Message(role="system", content=self.instructions)] if self.instructions else []
        tools = [tool.for_chat(f"tools[{index}]") for index, tool in enumerate(self.tools or ())]
        chat = ChatRequest(
            messages=[*system, *chat_messages(items)],
            tools=tools or None,
            tool_choice=_chat_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
        )
        self._set_format(chat)
        return chat

    def unenforced(self) -> list[str]:
        """The fields that ask for what is not kept to."""
        verbose = self.text is not None and self.text.verbosity not in (None, "medium")
        return ["reasoning"] * bool(self.reasoning) + ["text.verbosity"] * verbose

    def _set_format(self, chat: ChatRequest) -> None:
        wanted = self.text.response_format() if self.text is not None else None
        if wanted is not None:
            try:
                chat.response_format = msgspec.convert(wanted, ResponseFormat)
            except msgspec.ValidationError as error:
                raise InvalidRequest(f"text.format: {error}", param="text.format") from error

    def _refuse(self) -> None:
        for name in ("conversation", "prompt", "personality"):
            if getattr(self, name):
                message = f"{name}: this version does not implement it; leave the field out"
                raise InvalidRequest(message, param=name, code="unsupported")
        if self.truncation == "auto":
            message = "truncation: 'auto' is not implemented; shorten the input, or use 'disabled'"
            raise InvalidRequest(message, param="truncation", code="unsupported")


class ResponsesRequest(ConversationRequest, kw_only=True):
    """Body of POST /v1/responses."""

    max_output_tokens: PositiveInt | None = None
    max_tool_calls: Any = None  # counts tools that run on OpenAI's servers; there are none here
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    # vLLM's extras
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    request_id: RequestId | None = None
    deadline_ms: PositiveInt | None = None

    def chat(self, items: Iterable[Item]) -> ChatRequest:
        """As above, with how to choose tokens."""
        chat = super().chat(items)
        for name in _SHARED:
            setattr(chat, name, getattr(self, name))
        chat.max_completion_tokens = self.max_output_tokens
        if LOGPROBS in (self.include or ()) or self.top_logprobs:
            chat.logprobs, chat.top_logprobs = True, self.top_logprobs
        return chat

    def check(self) -> None:
        """Raises InvalidRequest for fields that contradict each other."""
        if self.background and self.stream:
            message = "background: it cannot be streamed here; leave out stream, and ask for the response by its id"
            raise InvalidRequest(message, param="background", code="unsupported")
        if self.background and self.store is False:
            message = "background: it needs store, or nobody could ask for the response"
            raise InvalidRequest(message, param="background")

    def unenforced(self) -> list[str]:
        """As above, and what `include` asks for in vain."""
        return [*super().unenforced(), *(f"include.{name}" for name in self.include or () if name != LOGPROBS)]


_SHARED = (
    "temperature", "top_p", "stream", "top_k", "min_p", "repetition_penalty", "seed", "stop", "priority", "cache_salt",
    "request_id", "deadline_ms",
)  # fmt: skip


def _chat_choice(choice: ToolChoice | None) -> ToolChoice | None:
    """A named tool, as chats name it."""
    if isinstance(choice, dict) and choice.get("type") == "function" and "function" not in choice:
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice
