"""A progress bar on the terminal, silent where standard error is not one. rich is imported only to draw."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressBar:
    """`total` things of a `unit`, or stages with a fraction each."""

    def __init__(self, title: str, *, total: int | None = None, unit: str = "", enabled: bool = True) -> None:
        self._bar: Progress | None = None
        self._tokens = 0
        if enabled and sys.stderr.isatty():
            self._bar = _make_bar(unit)
            self._task = self._bar.add_task(title, total=total if total is not None else 1.0, note="")

    def stage(self, name: str, fraction: float) -> None:
        """Show that `fraction` (0 … 1) of the stage `name` is done."""
        if self._bar is not None:
            self._bar.update(self._task, description=name, completed=fraction)

    def advance(self, done: int, *, tokens: int = 0) -> None:
        """Count `done` more things, and tokens beside them."""
        self._tokens += tokens
        if self._bar is not None:
            speed = self._bar.tasks[self._task].elapsed or 0.0
            note = f"{self._tokens / speed:,.0f} tokens/s" if speed else ""
            self._bar.update(self._task, advance=done, note=note)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _make_bar(unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    count: list[Any] = [MofNCompleteColumn(), TextColumn(unit)] if unit else [TextColumn("{task.percentage:>3.0f}%")]
    note = TextColumn("{task.fields[note]}")
    return Progress(
        TextColumn("{task.description}"), BarColumn(), *count, note, TimeElapsedColumn(), console=Console(stderr=True)
    )
