"""Bodies of Anthropic's Messages API, and the same conversations as chats. Source: Anthropic's API reference, Messages.

What a chat cannot say is refused here, so that errors have the paths of the body that the client sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest
from core.server.forms import JsonSchema, ResponseFormat
from core.server.protocol import ChatRequest, Message, PositiveInt, Request, TextPart
from core.server.tools import FunctionCall, Name, ToolCall, ToolChoice
from core.types import MAX_STOP_STRINGS

# --- content -------------------------------------------------------------------------------------------------


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A block of text."""

    text: str


class Thinking(msgspec.Struct, frozen=True, tag="thinking"):
    """What the model thought in an earlier turn."""

    thinking: str


class Image(msgspec.Struct, frozen=True, tag="image"):
    """Not for these models."""


class Document(msgspec.Struct, frozen=True, tag="document"):
    """Not for these models."""


class ToolUse(msgspec.Struct, frozen=True, tag="tool_use"):
    """A call that the assistant made."""

    id: Name
    name: Name
    input: dict[str, Any]


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result"):
    """What a call gave. That it failed (`is_error`) templates have no place for: the content says it."""

    tool_use_id: Name
    content: str | list[Text | Image | Document] = ""


Block = Text | Thinking | Image | Document | ToolUse | ToolResult


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str | list[Block]

    def messages(self, where: str) -> Iterator[Message]:
        """The turn as a chat's messages: the results of calls are messages of their own. Raises InvalidRequest."""
        if isinstance(self.content, str):
            yield Message(role=self.role, content=self.content)
            return
        where = f"{where}.content"
        if not self.content:
            raise InvalidRequest(f"{where}: the list is empty; give at least one block", param=where)
        for index, block in enumerate(self.content):
            self._check(block, f"{where}[{index}]")
        yield from self._assistant(self.content) if self.role == "assistant" else self._user(self.content, where)

    def _check(self, block: Block, where: str) -> None:
        _check_modality(block, where)
        own = (Text, Thinking, ToolUse) if self.role == "assistant" else (Text, ToolResult)
        if not isinstance(block, own):
            kind = type(block).__struct_config__.tag
            raise InvalidRequest(f"{where}.type: {kind!r} is no block of the {self.role}'s", param=f"{where}.type")

    def _assistant(self, blocks: list[Block]) -> Iterator[Message]:
        calls = [
            ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=_json(block.input)))
            for block in blocks
            if isinstance(block, ToolUse)
        ]
        thought = "".join(block.thinking for block in blocks if isinstance(block, Thinking))
        text = [TextPart(type="text", text=block.text) for block in blocks if isinstance(block, Text)]
        yield Message(role="assistant", content=text, tool_calls=calls or None, reasoning_content=thought or None)

    def _user(self, blocks: list[Block], where: str) -> Iterator[Message]:
        said: list[TextPart] = []
        for index, block in enumerate(blocks):
            if isinstance(block, Text):
                said.append(TextPart(type="text", text=block.text))
            elif isinstance(block, ToolResult):
                if said:
                    yield Message(role="user", content=said)
                    said = []
                content = _result(block, f"{where}[{index}].content")
                yield Message(role="tool", tool_call_id=block.tool_use_id, content=content)
        if said:
            yield Message(role="user", content=said)


def _result(block: ToolResult, where: str) -> str:
    if isinstance(block.content, str):
        return block.content
    for index, part in enumerate(block.content):
        _check_modality(part, f"{where}[{index}]")
    return "\n".join(part.text for part in block.content if isinstance(part, Text))


def _check_modality(block: Block, where: str) -> None:
    if isinstance(block, Image | Document):
        kind = type(block).__struct_config__.tag
        message = f"{where}.type: this model's modalities are ['text']; got {kind!r}"
        raise InvalidRequest(message, param=f"{where}.type", code="unsupported")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # of any size, which msgspec's integers are not


# --- tools ---------------------------------------------------------------------------------------------------


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of the client's. `input_schema` is the JSON schema of its arguments."""

    name: Name
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None  # Anthropic's servers have others, which run there
    strict: bool | None = None

    def function(self) -> dict[str, Any]:
        """The tool in OpenAI's form."""
        given = {"description": self.description, "strict": self.strict}
        more = {key: value for key, value in given.items() if value is not None}
        return {"type": "function", "function": {"name": self.name, **more, "parameters": self.input_schema}}


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether tools may, must or must not be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def choice(self) -> ToolChoice:
        """The choice in OpenAI's form."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


# --- the form of the answer ----------------------------------------------------------------------------------


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """JSON by a schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer is to be like."""

    format: OutputFormat | None = None
    effort: str | None = None  # a model makes as much of it as it makes: the answer's headers say so


# --- requests ------------------------------------------------------------------------------------------------


class CountTokensRequest(Request, kw_only=True):
    """Body of POST /v1/messages/count_tokens: what a message's prompt is made of."""

    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    thinking: dict[str, Any] | None = None  # a model thinks as its template has it: the answer's headers say so
    cache_control: dict[str, Any] | None = None  # every prefix is cached
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # as it was spelt in the beta
    # not implemented
    container: Any = None
    context_management: Any = None
    mcp_servers: list[Any] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat; an assistant's turn at the end is the beginning of the answer. Raises InvalidRequest."""
        self._refuse()
        messages = [Message(role="system", content=self._system())] if self.system else []
        for index, turn in enumerate(self.messages):
            messages += turn.messages(f"messages[{index}]")
        continues = self.messages[-1].role == "assistant"
        if continues and messages[-1].tool_calls:
            where = f"messages[{len(self.messages) - 1}].content"
            raise InvalidRequest(f"{where}: the results of its calls are missing after it", param=where)
        choice = self.tool_choice or Choice(type="auto")
        return ChatRequest(
            messages=messages,
            continue_final_message=continues,
            tools=[tool.function() for tool in self.tools or ()] or None,
            tool_choice=choice.choice(),
            parallel_tool_calls=not choice.disable_parallel_tool_use,
            response_format=self._response_format(),
        )

    @property
    def format_field(self) -> str:
        """Where the form of the answer stands."""
        return "output_format" if self.output_format is not None else "output_config.format"

    def unenforced(self) -> list[str]:
        """The fields that ask for what is not kept to."""
        strict = [f"tools[{index}].strict" for index, tool in enumerate(self.tools or ()) if tool.strict]
        effort = self.output_config is not None and self.output_config.effort is not None
        return strict + ["thinking"] * bool(self.thinking) + ["output_config.effort"] * effort

    def _response_format(self) -> ResponseFormat | None:
        """Anthropic's are strict: a schema that cannot be enforced is refused."""
        given = [self.output_config.format] if self.output_config is not None else []
        formats = [form for form in (*given, self.output_format) if form is not None]
        if len(formats) > 1:
            message = "output_format: output_config.format says it already; give one of them"
            raise InvalidRequest(message, param="output_format")
        if not formats:
            return None
        return ResponseFormat(type="json_schema", json_schema=JsonSchema(schema=formats[0].schema, strict=True))

    def _system(self) -> str | list[TextPart]:
        if isinstance(self.system, list):
            return [TextPart(type="text", text=block.text) for block in self.system]
        return self.system or ""

    def _refuse(self) -> None:
        absent = {name: getattr(self, name) for name in ("container", "context_management", "mcp_servers")}
        for name, value in absent.items():
            if value:
                message = f"{name}: this version does not implement it; leave the field out"
                raise InvalidRequest(message, param=name, code="unsupported")


class MessagesRequest(CountTokensRequest, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: PositiveInt
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: Annotated[list[Name], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None

    def chat(self) -> ChatRequest:
        """As above, with how to choose tokens."""
        chat = super().chat()
        chat.max_tokens, chat.temperature, chat.stream = self.max_tokens, self.temperature, self.stream
        chat.top_p, chat.top_k, chat.stop = self.top_p, self.top_k, self.stop_sequences
        return chat
