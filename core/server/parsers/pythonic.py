"""Calls as Llama 3.2 and 4, ToolACE and others write them: the whole answer is `[get_weather(city="Rome"), add(a=1)]`.

A call is parsed as Python and never evaluated: its arguments have to be literals, by keyword, that JSON can hold.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Collection, Iterator
from typing import Any

from core.server.parsers.base import ParserContext, ToolEvent
from core.server.parsers.states import Reader, StatesToolParser

#: Bounds on one call. Python's parser takes what is within them in milliseconds and on little stack.
_MOST_CHARACTERS = 64 << 10
_DEEPEST = 32
_PAIRS = {"(": ")", "[": "]", "{": "}"}
#: What models write of JSON in between.
_JSON_NAMES = {"true": True, "false": False, "null": None}


class PythonicToolParser(StatesToolParser):
    """Calls from the beginning on, then text. As nothing marks a call, its name has to be one of the request's tools.

    Any other list is the model's answer, and content.
    """

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context, "before")
        self._names = {tool["function"]["name"] for tool in context.tools}
        self._call = _CallReader(self._names)

    def _step(self) -> Iterator[ToolEvent]:
        match self._state:
            case "before":
                self._pass_opening("[")
            case "call":
                yield from self._read()
            case "between":
                self._pass_separator()
            case "behind" if self._held.strip():
                self._state = "text"
            case "text":
                yield from self._all_held()

    def _rest(self) -> str:
        """A list that lacks its end is forgiven."""
        match self._state:
            case "before":
                return self._held
            case "call" if not (self._calls and not self._call.text.strip()):
                return self._opening + self._call.text
        return ""

    def _pass_opening(self, bracket: str) -> None:
        text = self._held.lstrip()
        if text.startswith(bracket):
            length = len(self._held) - len(text) + 1
            self._opening, self._held = self._held[:length], self._held[length:]
            self._call = _CallReader(self._names)
            self._state = "call"
        elif text:
            self._state = "text"

    def _pass_separator(self) -> None:
        text = self._held.lstrip()
        if text.startswith("]"):
            self._held, self._state = text.removeprefix("]"), "behind"
        else:
            self._pass_opening(",")

    def _read(self) -> Iterator[ToolEvent]:
        self._held = self._call.read(self._held)
        if self._call.state == "open":
            return
        arguments = _arguments(self._call.text) if self._call.state == "complete" else None
        if arguments is not None:
            yield from self.call(self._call.name, arguments)
            self._state = "between"
        elif self._calls and not self._call.text.strip() and self._held.startswith("]"):
            self._held, self._state = self._held.removeprefix("]"), "behind"  # a comma before the end, as Python has it
        else:
            yield from self._no_call(self._opening + self._call.text)


class _CallReader(Reader):
    """A name and what follows it in brackets."""

    longest = _MOST_CHARACTERS

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.name = ""
        self._names = names
        self._closing: list[str] = []  # of the brackets that are open, the innermost last
        self._quote = ""  # of the string that is open
        self._escaped = False

    def _is_end(self, char: str) -> bool:
        return char == ")" and not self._closing

    def _take(self, char: str) -> bool:
        """Whether `char` may come next, as far as strings and brackets tell."""
        if not self._closing:
            return self._take_of_name(char)
        if self._escaped:
            self._escaped = False
        elif self._quote:
            self._escaped = char == "\\"
            self._quote = "" if char == self._quote else self._quote
        elif char in "'\"":
            self._quote = char
        elif char in _PAIRS:
            self._closing.append(_PAIRS[char])
            return len(self._closing) <= _DEEPEST
        elif char in ")]}":
            return self._closing.pop() == char
        return True

    def _take_of_name(self, char: str) -> bool:
        if char == "(":
            self._closing.append(")")
            return self.name in self._names
        if char.isspace():
            return not self.name
        self.name += char
        return any(name.startswith(self.name) for name in self._names)


def _arguments(call: str) -> str | None:
    """The arguments of a call as a JSON object; None where it is none, or they are no literals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, about escapes in the model's strings
            node = ast.parse(call.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        given = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
        if None in given or len(given) < len(node.keywords):
            return None
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
        text.encode()  # raises where an escape made half of a surrogate pair
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return text


def _literal(node: ast.expr) -> Any:
    """What a literal stands for. Raises ValueError for anything else."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if value is not True:
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _literal(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError("no literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("no text for a key")
