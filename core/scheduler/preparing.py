"""Requests that wait for what their answers need beside the model, such as a grammar that is being compiled."""

from __future__ import annotations

from collections.abc import Callable

from core.scheduler.request import Request, Status
from core.types import SamplingParams

#: Whether a request with these parameters can be admitted without holding up a step (`core.platform.Executor.prepared`).
IsPrepared = Callable[[SamplingParams], bool]


#: So many are prepared at once, which is fewer than an executor keeps prepared: else one could push out another.
_AT_ONCE = 32


class Preparing:
    """Those that are not prepared, in the order they came."""

    def __init__(self, is_prepared: IsPrepared) -> None:
        self._is_prepared = is_prepared
        self._waiting: list[tuple[Request, str | None]] = []

    @property
    def is_pending(self) -> bool:
        """Whether any request waits here."""
        return bool(self._waiting)

    def hold(self, request: Request, parent_id: str | None) -> bool:
        """Keep a new request here until it is prepared; False where it is. Where many wait it is not asked yet."""
        asked = len(self._waiting) < _AT_ONCE
        if request.params.structured_outputs is None or (asked and self._is_prepared(request.params)):
            return False
        request.status = Status.PREPARING
        self._waiting.append((request, parent_id))
        return True

    def hold_again(self, request: Request) -> bool:
        """The same for one that has waited since, maybe so long that it is not prepared any more: it is the next."""
        if request.params.structured_outputs is None or self._is_prepared(request.params):
            return False
        request.status = Status.PREPARING
        self._waiting.insert(0, (request, None))
        return True

    def take(self) -> list[tuple[Request, str | None]]:
        """Those that are prepared now, with what was given for them."""
        if not self._waiting:
            return []
        waiting = [pair for pair in self._waiting if pair[0].status is Status.PREPARING]  # the others were aborted
        ready = [pair for pair in waiting[:_AT_ONCE] if self._is_prepared(pair[0].params)]
        self._waiting = [pair for pair in waiting if pair not in ready]
        return ready
