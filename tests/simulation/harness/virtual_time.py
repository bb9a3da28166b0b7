"""An event loop whose time is computed and not waited for.

When nothing is ready, it jumps to the next timer. It has no selector, no sockets and no threads, so what runs in it
depends on the program alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Deadlock(AssertionError):
    """Everybody waits for something that nobody will do."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Seconds from 0. Signals are calls of `raise_signal`."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._clock_resolution = 1e-7  # how early a timer may go off: floats still tell it from nothing after a year
        self._selector = self  # what BaseEventLoop asks for events, and for how long to wait
        self._signals: dict[int, Callable[[], object]] = {}

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """No event but the passing of `timeout` seconds."""
        if timeout is None:
            raise Deadlock("nothing is ready and no timer is set")
        self._now += timeout
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        raise AssertionError("a thread calls into a simulation that has none")

    def add_signal_handler(self, number: int, callback: Callable[..., object], *args: Any) -> None:
        self._signals[number] = lambda: callback(*args)

    def remove_signal_handler(self, number: int) -> bool:
        return self._signals.pop(number, None) is not None

    def raise_signal(self, number: int) -> None:
        """Deliver a signal, as if the process had got it. One that nobody handles is lost."""
        if number in self._signals:
            self.call_soon(self._signals[number])


async def sleep_until(moment: float) -> None:
    """Return when the loop's time has reached `moment`, which may have passed; others get a turn in any case."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, moment - loop.time()))
