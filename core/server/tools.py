"""Tools in chat requests: those that the model may call, and the calls it made in earlier turns.

Source: OpenAI's API reference, Chat Completions. Every error is an InvalidRequest whose `param` is the field's path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest
from core.server.malformed import validation_error

Name = Annotated[str, Meta(min_length=1)]
#: What a request says of choosing tools: a word, or an object that names one.
ToolChoice = str | dict[str, Any]


# --- what may be called --------------------------------------------------------------------------------------


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function of the client's. `parameters` is a JSON schema of its arguments, which the model is shown."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool. Functions are the one type that these models know."""

    type: Literal["function"]
    function: Function


class _Tools(msgspec.Struct):
    tools: list[Tool]


class _FunctionName(msgspec.Struct):
    name: Name


class _NamedTool(msgspec.Struct):
    type: Literal["function"]
    function: _FunctionName


class _Named(msgspec.Struct):
    tool_choice: _NamedTool


def callable_tools(
    given: Sequence[dict[str, Any]] | None, choice: ToolChoice | None, *, has_parser: bool
) -> tuple[dict[str, Any], ...]:
    """The tools that the model is shown and may call, in the client's own words. With "none", there are none.

    Raises InvalidRequest for a choice that is none, a tool that is none, or where no parser reads the calls.
    """
    _check_choice(choice)
    if not given or choice == "none":
        return ()
    if not has_parser and choice in (None, "auto"):
        message = (
            "tools: this server was not told how its model writes tool calls; start it with --tool-call-parser NAME, or "
            "leave the field out"
        )
        raise InvalidRequest(message, param="tools", code="unsupported")
    try:
        msgspec.convert({"tools": given}, _Tools)
    except msgspec.ValidationError as error:
        raise validation_error(error) from error
    return tuple(given)


def unenforced(tools: Sequence[dict[str, Any]], choice: ToolChoice | None) -> list[str]:
    """The fields that ask for arguments by the schema where nothing makes the model keep to it: it need not call."""
    if choice not in (None, "auto"):
        return []
    return [f"tools[{index}].function.strict" for index, tool in enumerate(tools) if tool["function"].get("strict")]


def _check_choice(choice: ToolChoice | None) -> None:
    if choice in (None, "none", "auto", "required"):
        return
    if isinstance(choice, dict):
        try:
            msgspec.convert({"tool_choice": choice}, _Named)
        except msgspec.ValidationError as error:
            raise validation_error(error) from error
        return
    message = f"tool_choice: {choice[:64]!r} is none of 'none', 'auto', 'required' and a tool"
    raise InvalidRequest(message, param="tool_choice")


# --- what was called -----------------------------------------------------------------------------------------


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """Which function, with which arguments: the text of a JSON object."""

    name: Name
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of an assistant's message."""

    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"

    def for_template(self, where: str) -> dict[str, Any]:
        """The call as chat templates read it, its arguments an object. Raises InvalidRequest."""
        try:
            arguments = msgspec.json.decode(self.function.arguments or "{}", type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError) as error:
            param = f"{where}.function.arguments"
            raise InvalidRequest(f"{param}: it is not the text of a JSON object: {error}", param=param) from error
        given = {} if self.id is None else {"id": self.id}
        return {**given, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}
