"""A connector that keeps blocks in this process, and misbehaves when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from core.cache.connector import KVConnector
from core.transfer.lane import Lane


class Shelf(KVConnector):
    """`kept` is what was saved. `trouble` is called at the beginning of each call, with its name."""

    def __init__(self) -> None:
        self.kept: dict[tuple[bytes, int], bytes] = {}
        self.trouble: Callable[[str], None] = lambda name: None
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.closed = 0

    def _note(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_ident())
        self.trouble(name)

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        self._note("lookup")
        count = 0
        for block_hash in hashes[num_local:]:
            if (block_hash, 0) not in self.kept:
                break
            count += 1
        return count

    def save(self, block_hash: bytes, group: int, data: memoryview) -> None:
        self._note("save")
        self.kept[block_hash, group] = bytes(data)

    def load(self, block_hash: bytes, group: int) -> bytes | None:
        self._note("load")
        return self.kept.get((block_hash, group))

    def close(self) -> None:
        self._note("close")
        self.closed += 1


class Gate:
    """Trouble that holds a call until it is opened; `entered` when one is held."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, name: str) -> None:
        self.entered.set()
        assert self._open.wait(20)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def lane(shelf: Shelf) -> Iterator[Lane]:
    made = Lane("shelf", lambda: shelf)
    yield made
    shelf.trouble = lambda name: None
    made.close()
