"""The scheduler's side of a connector, which may do what it likes and stops nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from core.cache.connector import KVConnector, KVIndex
from core.transfer.lane import Lane

#: How long a turn of the scheduler waits for an answer.
ANSWER_S = 0.1


class GuardedIndex(KVIndex):
    """Asks the connector on its own thread. While it does not answer as it should, it has no blocks and wants none."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        # What wants all needs no asking, and a question costs two changes of thread.
        self._wants_all = type(lane.connector).wants is KVIndex.wants

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        """What the connector says, or 0."""
        found = self._ask("lookup", lambda connector: connector.lookup(hashes, num_local))
        if found is None:
            return 0
        if not isinstance(found, int) or found < 0:
            self._lane.rest(f"lookup gave {found!r} where a number of blocks is due")
            return 0
        return min(found, len(hashes) - num_local)

    def wants(self, block_hash: bytes) -> bool:
        """What the connector says, or False; whether it can be saved is the other side's to say, and to count."""
        return self._wants_all or bool(self._ask("wants", lambda connector: connector.wants(block_hash)))

    def close(self) -> None:
        """Close the connector. May be called twice."""
        self._lane.close()

    def _ask(self, name: str, question: Callable[[KVConnector], Any]) -> Any:
        """The answer, or None if there is none in time."""
        if not self._lane.usable():
            return None
        answered = threading.Event()
        answer: Any = None

        def call(connector: KVConnector) -> None:
            nonlocal answer
            try:
                answer = question(connector)
            except Exception as error:  # before the answer, or the next question would find it usable
                self._lane.rest(error)
            finally:
                answered.set()

        self._lane.add(call, urgent=True)
        if not answered.wait(ANSWER_S):
            self._lane.rest(f"{name} has given no answer within {ANSWER_S:g} s")
            return None
        return answer
