"""What time it is, for scheduling: the machine's own time, or one that only moves when it is told to. Torch-free."""

from __future__ import annotations

import abc
import time


class Clock(abc.ABC):
    """Seconds from an arbitrary start, never going back; the scale of a request's arrival and deadline."""

    @abc.abstractmethod
    def now(self) -> float:
        """Seconds."""

    @abc.abstractmethod
    def sleep_until(self, moment: float) -> None:
        """Return when `now` has reached `moment`; at once if it has passed."""


class MonotonicClock(Clock):
    """`time.monotonic`, which all processes of a machine share."""

    def now(self) -> float:
        """Seconds since the machine started, or so."""
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        """Sleep."""
        while (remaining := moment - time.monotonic()) > 0:
            time.sleep(remaining)


class VirtualClock(Clock):
    """Moves only when it is told to: hours of simulated traffic pass in as long as it takes to compute them."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Seconds of simulated time."""
        return self._now

    def sleep_until(self, moment: float) -> None:
        """Be there."""
        self._now = max(self._now, moment)

    def advance(self, seconds: float) -> None:
        """Let `seconds`, at least 0, pass."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._now += seconds
