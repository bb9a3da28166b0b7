"""What happened, line by line, and what should not have."""

from __future__ import annotations

from collections.abc import Callable


class Violation(Exception):
    """An invariant that does not hold: its name, and what was seen."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str]]:
        return type(self), (self.invariant, self.detail)


class BadLuck(Exception):
    """What a scenario makes an engine suffer. Any other error that ends an engine is a Violation."""


class Trace:
    """Events in the order in which they happened. Kept only when somebody wants to read them: they cost a third of a run."""

    def __init__(self, clock: Callable[[], float], *, keep: bool) -> None:
        self._clock = clock
        self.keep = keep
        self.lines: list[str] = []

    def note(self, who: str, event: str, *args: object, moment: float | None = None) -> None:
        """`event % args` happened to `who`, now or at a `moment` that the loop has not reached yet."""
        if self.keep:
            self.lines.append(
                f"{self._clock() if moment is None else moment:12.6f} {who:<12} {event % args if args else event}"
            )
