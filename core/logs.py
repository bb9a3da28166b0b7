"""Structured logs on the standard library: a message, and fields beside it.

    log = get_logger("scheduler")
    log.warning("out of blocks", preempted=request_id, free=3)

As text (`CORE_LOG_FORMAT=text`) that is one line, `time LEVEL component message key=value …`; as json one object.
Messages may use `%` arguments. Each process calls `setup` once, with its own name as the component; a program that
embeds the engine and does not call it keeps its own logging configuration.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal

from core import envs

_ROOT = "core"
_STANDARD = frozenset({"exc_info", "stack_info", "stacklevel", "extra"})


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods take fields as keywords (of any name but `level` and `msg`, which are logging's own)."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Move the keywords that logging does not know into the record."""
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name not in _STANDARD}
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "fields": fields}
        return msg, kwargs


def get_logger(name: str) -> Log:
    """The logger of one part of the engine: `scheduler`, `runner`, …"""
    return Log(logging.getLogger(f"{_ROOT}.{name}"))


def setup(
    component: str,
    *,
    level: Literal["debug", "info", "warning", "error"] | None = None,
    format: Literal["text", "json"] | None = None,
) -> None:
    """Log to stderr as `component`; what is not given comes from the environment.

    Other libraries are shown from their warnings up. Calling it again replaces what it set before. Raises
    ConfigError on a bad CORE_LOG_LEVEL or CORE_LOG_FORMAT.
    """
    environment = envs.read()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[format or environment.log_format](component))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel((level or environment.log_level).upper())


class TextFormatter(logging.Formatter):
    """One line for people; a traceback follows on lines of its own."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        """`2026-01-31 12:00:00.123 INFO    engine  ready seconds=1.2`, in local time."""
        time = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={_text(value)}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname:<7} {self._component}  {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line, time in UTC (RFC 3339). A field never hides one of the record's own names."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        """`{"time": …, "level": "info", "component": …, "logger": …, "message": …, …}`."""
        entry = {
            **_fields(record),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "component": self._component,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


_FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _text(value: object) -> str:
    """Floats to three places; text that would not read as one word in quotes."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' ="') else json.dumps(text)
