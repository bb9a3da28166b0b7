"""The requests that can run as soon as there is room, most important first."""

from __future__ import annotations

import bisect
from operator import attrgetter

from core.scheduler.request import Request

_key = attrgetter("key")


class RequestQueue:
    """Requests in the order of their keys (`Request.key`): the one order by which the scheduler admits, runs and
    preempts. Also holds the running ones.

    A plain sorted list: insertion is a binary search and one memmove, which for 4,096 requests costs about 1 µs.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> list[Request]:
        """The requests in order; to be read only."""
        return self._requests

    @property
    def first(self) -> Request:
        """The most important one. Raises IndexError when there is none."""
        return self._requests[0]

    @property
    def last(self) -> Request:
        """The least important one. Raises IndexError when there is none."""
        return self._requests[-1]

    def add(self, request: Request) -> None:
        """Put `request` in its place."""
        bisect.insort(self._requests, request, key=_key)

    def remove(self, request: Request) -> None:
        """Take `request` out, wherever it stands."""
        del self._requests[bisect.bisect_left(self._requests, request.key, key=_key)]
