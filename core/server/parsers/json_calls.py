"""Tool calls that models write as JSON objects."""

from __future__ import annotations

from typing import Any

import msgspec

from core.server.parsers.states import Reader

_SPACE = " \t\n\r"
#: What stands in JSON outside of strings (RFC 8259): numbers, literals, structure, whitespace.
_OUTSIDE = frozenset(f"{_SPACE}:,+-.0123456789eEtrufalsn")


class ObjectReader(Reader):
    """A JSON object."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def _is_end(self, char: str) -> bool:
        return self._depth == 0 and char == "}"

    def _take(self, char: str) -> bool:
        """Whether `char` may come next; pairs of brackets are left to whoever parses the whole."""
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped, self._in_string = char == "\\", char != '"'
        elif self._depth == 0:
            self._depth = int(char == "{")
            return char == "{" or char in _SPACE
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth > 0 or char == "}"
        elif char == '"':
            self._in_string = True
        else:
            return char in _OUTSIDE
        return True


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


def read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of `{"name": …, "arguments": {…}}`, the arguments as the model wrote them; None if it is none.

    Llama calls the arguments `parameters`.
    """
    try:
        call = msgspec.json.decode(text, type=_Call)
        arguments = call.arguments or call.parameters
        msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return None
    return (call.name, bytes(arguments).decode()) if call.name else None
