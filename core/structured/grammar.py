"""From a form to a grammar that the library compiles, and the bounds within which it does.

A grammar comes from a client. The library bounds its lexer and parser by counts (`limits`); what those leave open is
quadratic in a grammar's length and, in rules that name each other, as deep on the stack as there are rules: hence a
limit on the length, and a thread with a stack for the deepest grammar of that length.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from typing import Any, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from core.errors import InvalidRequest, QueueFull
from core.types import StructuredOutputs

#: Characters of a grammar. What is longer than that is seldom a form, and some work is quadratic in it.
MAX_GRAMMAR_CHARS = 32 << 10
#: Address space, of which only what is used becomes memory: 8 MiB overflowed between 500 and 1,000 nested references.
_STACK_BYTES = 256 << 20
#: Between tokens of JSON. Without an end, a model may go on with spaces for as long as it is allowed tokens.
_WHITESPACE = r"[ \n\r\t]{1,40}"
_MAX_REASON = 300
#: For those that compile before this one; each of the worst takes more than a second.
_PATIENCE_S = 10.0

_T = TypeVar("_T")


def check(form: StructuredOutputs, field: str = "structured_outputs") -> None:
    """Compile the form, as the engine will. Forms seen lately cost nothing.

    Raises InvalidRequest naming `field`, QueueFull where others' grammars take the time.
    """
    param = f"{field}.{form.kind}" if field == "structured_outputs" else field
    try:
        text = grammar_text(form)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param}: {_reason(str(error))}", param=param) from error
    if len(text) > MAX_GRAMMAR_CHARS:
        message = f"{param}: as a grammar it is {len(text)} characters long; at most {MAX_GRAMMAR_CHARS} are taken"
        raise InvalidRequest(message, param=param)
    if reason := _fault(text):
        raise InvalidRequest(f"{param}: {reason}", param=param)


def grammar_text(form: StructuredOutputs) -> str:
    """The form in the library's own format. Raises ValueError for a schema that is no JSON object."""
    match form.kind:
        case "json":
            schema = form.json if isinstance(form.json, str) else json.dumps(form.json)
            return _of_schema(schema, strict=form.strict)
        case "json_object":
            return _of_schema('{"type": "object"}', strict=True)
        case "regex":
            return str(LLMatcher.grammar_from_regex(form.regex or ""))
        case "choice":
            return str(LLMatcher.grammar_from_regex("|".join(map(re.escape, form.choice))))
        case _:
            return str(LLMatcher.grammar_from_lark(form.grammar or ""))


def limits() -> LLParserLimits:
    """The library's bounds on one grammar, below its own defaults where a client could hold up others."""
    return LLParserLimits(
        max_items_in_row=2000,
        step_max_items=5_000,
        initial_lexer_fuel=100_000,
        step_lexer_fuel=50_000,
        max_lexer_states=20_000,
        max_grammar_size=60_000,
        verbose_errors=False,
    )


def compiling(function: Callable[[], _T]) -> Future[_T]:
    """Run what compiles a grammar on the one thread whose stack is deep enough."""
    return _thread().submit(function)


@functools.cache
def _thread() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(1, "grammar")
    before = threading.stack_size(_STACK_BYTES)
    try:
        pool.submit(int).result()  # starts it
    finally:
        threading.stack_size(before)
    return pool


def _of_schema(schema: str, *, strict: bool) -> str:
    overrides: Any = {"whitespace_pattern": _WHITESPACE, "lenient": not strict, "coerce_one_of": not strict}
    return str(LLMatcher.grammar_from_json_schema(schema, None, overrides))


@functools.lru_cache(maxsize=128)
def _fault(text: str) -> str:
    """Why the library does not take the grammar, or nothing."""
    waiting = compiling(lambda: _compile_fault(text))
    try:
        return waiting.result(_PATIENCE_S)
    except TookTooLong:
        waiting.cancel()
        raise QueueFull("grammars of other requests are being compiled; try again") from None


def _compile_fault(text: str) -> str:
    matcher = LLMatcher(_bytes(), text, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    empty = matcher.is_stopped() and not matcher.is_accepting()
    if matcher.is_error() and not matcher.get_error().startswith("NoExtension"):
        return _reason(matcher.get_error())
    return "no text matches it" if empty else ""


def _reason(error: str) -> str:
    return " ".join(error.removesuffix("<non-verbose/>").split())[:_MAX_REASON]


class _Bytes:
    """A vocabulary of single bytes: enough to compile a grammar without the model's."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@functools.cache
def _bytes() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))
