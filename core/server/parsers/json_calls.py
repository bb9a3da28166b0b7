"""Tool calls that models write as JSON objects."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

_SPACE = " \t\n\r"
#: What stands in JSON outside of strings (RFC 8259): numbers, literals, structure, whitespace.
_OUTSIDE = frozenset(f"{_SPACE}:,+-.0123456789eEtrufalsn")


class ObjectReader:
    """A JSON object that comes in pieces: finds its end, or the place from which on it can be none.

    `text` is what was read, whitespace before the object included: where it is no call after all, it is content.
    """

    def __init__(self) -> None:
        self.text = ""
        self.state: Literal["open", "complete", "broken"] = "open"
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def read(self, text: str) -> str:
        """Take from `text` what belongs to the object; the rest is returned, once `state` says that there may be one."""
        for at, char in enumerate(text):
            if not self._take(char):
                self.state = "broken"
                self.text += text[:at]
                return text[at:]
            if self._depth == 0 and char == "}":
                self.state = "complete"
                self.text += text[: at + 1]
                return text[at + 1 :]
        self.text += text
        return ""

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
