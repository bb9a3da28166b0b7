"""A thread with a connector of its own, and what keeps the rest of the engine safe from it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from core.cache.connector import KVConnector
from core.errors import PluginLoadError
from core.logs import get_logger

log = get_logger("kv_connector")

#: A call that has not come back for so long counts as hung. Nothing is asked until it is back.
HUNG_S = 2.0
#: How long a connector is left alone after a call that raised or hung.
REST_S = 3.0
#: How long `make` may take, and `close` with the calls before it.
START_S, CLOSE_S = 10.0, 2.0
#: Between two warnings about the same lane: a store that is away would fill the log.
QUIET_S = 30.0

Call = Callable[[KVConnector], Any]


class Lane:
    """Makes the connector on its thread, then one call after the other: the urgent ones first, else in order.

    A call that hangs cannot be ended, so the thread is a daemon and is left behind if it does not come back.
    """

    def __init__(self, name: str, make: Callable[[], KVConnector]) -> None:
        """Raises what `make` raises, PluginLoadError if it does not return within `START_S`."""
        self.name = name
        self.connector: KVConnector  # for looking at, not for calling
        self._changed = threading.Condition()
        self._urgent: deque[Call] = deque()
        self._patient: deque[Call] = deque()
        self._began: float | None = None  # when the call under way did
        self._rests_until = 0.0
        self._closing = False
        self._warnings = _Warnings()
        self._thread = threading.Thread(target=self._run, args=(make, started := _Started()), name=name, daemon=True)
        self._thread.start()
        if not started.event.wait(START_S):
            self._closing = True  # should it come back one day
            raise PluginLoadError(
                f"KV connector {name} has not come up within {START_S:g} s; see what it waits for, or go without it"
            )
        if started.error is not None:
            raise started.error

    def usable(self) -> bool:
        """Whether to ask it anything: no call hangs, and none has just gone wrong."""
        now = time.monotonic()
        with self._changed:
            if self._began is not None and now - self._began > HUNG_S:
                self._rest(f"a call has hung for more than {HUNG_S:g} s")
            return now >= self._rests_until

    def add(self, call: Call, *, urgent: bool) -> None:
        """Have `call` made. What it raises is logged, and makes the connector rest."""
        with self._changed:
            (self._urgent if urgent else self._patient).append(call)
            self._changed.notify()

    def rest(self, reason: str | Exception) -> None:
        """Leave the connector alone for a while, since `reason`."""
        with self._changed:
            self._rest(reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}")

    def warn(self, message: str) -> None:
        """Log it, unless something was logged just now."""
        with self._changed:
            self._warnings.warn(self.name, message)

    def close(self) -> None:
        """Make the calls that are left, if that is quick, and close the connector. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("%s has not ended within %g s and is left behind", self.name, CLOSE_S)

    # --- inside ---

    def _rest(self, reason: str) -> None:
        self._rests_until = time.monotonic() + REST_S
        self._warnings.warn(self.name, f"{reason}; it is left alone for {REST_S:g} s and KV is computed")

    def _run(self, make: Callable[[], KVConnector], started: _Started) -> None:
        try:
            self.connector = make()
        except BaseException as error:  # raised by the thread that waits
            started.error = error
            return
        finally:
            started.event.set()
        while (call := self._next()) is not None:
            self._make(call)
        try:
            self.connector.close()
        except Exception as error:
            log.warning("%s: close raised %s: %s", self.name, type(error).__name__, error)

    def _next(self) -> Call | None:
        with self._changed:
            while True:
                queue = self._urgent or self._patient
                if queue:
                    self._began = time.monotonic()
                    return queue.popleft()
                if self._closing:
                    return None
                self._changed.wait()

    def _make(self, call: Call) -> None:
        try:
            call(self.connector)
        except Exception as error:
            self.rest(error)
        finally:
            with self._changed:
                self._began = None


class _Started:
    def __init__(self) -> None:
        self.event = threading.Event()
        self.error: BaseException | None = None


class _Warnings:
    """At most one each `QUIET_S`, with how many were kept quiet."""

    def __init__(self) -> None:
        self._quiet_until = 0.0
        self._kept = 0

    def warn(self, name: str, message: str) -> None:
        now = time.monotonic()
        if now < self._quiet_until:
            self._kept += 1
            return
        self._quiet_until = now + QUIET_S
        kept, self._kept = self._kept, 0
        log.warning("%s: %s%s", name, message, f" ({kept} more were kept quiet)" if kept else "")
