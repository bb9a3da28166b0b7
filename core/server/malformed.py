"""Why a request body could not be read, in words that name the field. Runs only on bodies that were refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import msgspec

from core.errors import InvalidRequest

_EXPECTED = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
_PATH = re.compile(r"\$(?P<path>[^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")


def validation_error(error: msgspec.ValidationError) -> InvalidRequest:
    """msgspec's message about one field, with the field first."""
    text, _, where = str(error).partition(" - at ")
    found = _PATH.search(where)
    path = found["path"].removeprefix(".").replace("[...]", "") if found else ""
    if name := (_MISSING.match(text) or _UNKNOWN.match(text)):
        path = f"{path}.{name['name']}" if path else name["name"]
        missing = text.startswith("Object missing")
        reason = "the field is required" if missing else "no such field"
        return InvalidRequest(f"{path}: {reason}", param=path, code=None if missing else "unknown_field")
    match = _EXPECTED.match(text)
    reason = f"expected {match['expected']}, got {match['got']}" if match else text[:1].lower() + text[1:]
    return InvalidRequest(f"{path or 'the body'}: {reason}", param=path or None)


def explain(body: bytes, error: Exception) -> InvalidRequest:
    """What is wrong with a body that is not JSON (RFC 8259), or holds text that is not Unicode.

    NaN, Infinity and lone surrogates are what Python's own parser lets through: it finds the field that has one.
    """
    try:
        value = json.loads(body.decode())
    except UnicodeDecodeError as undecodable:
        return InvalidRequest(f"the body is not UTF-8: {undecodable.reason} at byte {undecodable.start}")
    except RecursionError:
        return InvalidRequest("the body is nested too deeply")
    except ValueError as malformed:
        return InvalidRequest(f"the body is not valid JSON: {str(malformed)[:200]}")
    for path, fault in _faults(value):
        return InvalidRequest(f"{path or 'the body'}: {fault}", param=path or None)
    return InvalidRequest(f"the body is not valid JSON: {error}")


def _faults(value: object) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of the values that JSON or Unicode do not have."""
    pending: list[tuple[str, object]] = [("", value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            yield path, f"{item} is not a number that JSON can hold"
        elif isinstance(item, str) and not _is_unicode(item):
            yield path, "the text holds a lone surrogate, which is no character"
        elif isinstance(item, list):
            pending += [(f"{path}[{index}]", each) for index, each in enumerate(item)]
        elif isinstance(item, dict):
            for key, each in item.items():
                if _is_unicode(key):
                    pending.append((f"{path}.{key}" if path else key, each))
                else:
                    yield path, "a field's name holds a lone surrogate"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
