"""One line for each answer, for whoever counts them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from acme_lines.plugin import LinesOptions

from core.hookspecs import parse_own_options
from core.metrics.base import FinishedChoice, MetricsSink


class LinesSink(MetricsSink):
    """Keeps the file open; the events of single tokens are not for it."""

    def __init__(self, model: str, options: Mapping[str, str]) -> None:
        own = parse_own_options("acme_lines", options, LinesOptions, flag="--plugin-opt")
        self._file = Path(own.path).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115  # until close()
        self._model = model

    def first_token(self, seconds: float) -> None:
        """Not counted."""

    def next_token(self, seconds: float) -> None:
        """Not counted."""

    def finished(self, choice: FinishedChoice) -> None:
        """The line."""
        self._file.write(json.dumps({"model": self._model, **asdict(choice)}) + "\n")

    def close(self) -> None:
        """The last line is on disk."""
        self._file.close()
