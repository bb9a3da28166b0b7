"""The worker's side of a connector: saves that nobody waits for, loads that are waited for in moderation.

The thread of the steps exports and imports; here are bytes on the host. A load that has been given up can bring
nothing any more: its blocks may be somebody else's by then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from core.cache.connector import KVConnector
from core.transfer.lane import Lane
from core.types import KVOp, KVTransferStats

#: Host memory that blocks waiting to be saved may take.
QUEUE_BYTES = 256 << 20


@dataclass(eq=False)
class _Load:
    """The blocks of one request that are still to be brought; 0 or failed: it has ended."""

    request_id: str
    remaining: int
    failed: bool = False


@dataclass(frozen=True)
class Arrived:
    """A block's bytes, and where they belong."""

    group: int
    block: int
    data: memoryview


@dataclass(frozen=True)
class Progress:
    """What has happened to loads: blocks to be imported, then the requests that have them all, and those that won't."""

    arrived: Sequence[Arrived]
    loaded: Sequence[str]
    failed: Sequence[str]


class BlockTransfer:
    """Used by the thread of the steps; what is underscored `_on_lane` runs on the connector's."""

    def __init__(self, lane: Lane, block_bytes: Sequence[int]) -> None:
        self._lane = lane
        self._block_bytes = block_bytes
        self._changed = threading.Condition()
        self._queued_bytes = 0
        self._loads: list[_Load] = []
        self._arrived: deque[tuple[_Load, Arrived]] = deque()
        self._saved = self._loaded = self._failed = self._dropped = 0

    def stats(self) -> KVTransferStats:
        """Counts since the start."""
        with self._changed:
            return KVTransferStats(saved=self._saved, loaded=self._loaded, failed=self._failed, dropped=self._dropped)

    def close(self) -> None:
        """Save what is queued, if that is quick, and close the connector. May be called twice."""
        self._lane.close()

    # --- saves ---

    def room(self, group: int, count: int) -> int:
        """How many of `count` blocks would be taken now; the others count as dropped."""
        with self._changed:
            free = (QUEUE_BYTES - self._queued_bytes) // self._block_bytes[group]
            taken = min(count, max(free, 0)) if self._lane.usable() else 0
            self._dropped += count - taken
        if taken < count and free < count:
            self._lane.warn(f"it saves slower than blocks are filled: {QUEUE_BYTES >> 20} MiB wait, others are dropped")
        return taken

    def save(self, block_hash: bytes, group: int, data: memoryview) -> None:
        """Save a block for which there was `room`."""
        with self._changed:
            self._queued_bytes += data.nbytes
        self._lane.add(partial(self._save_on_lane, block_hash, group, data), urgent=False)

    def _save_on_lane(self, block_hash: bytes, group: int, data: memoryview, connector: KVConnector) -> None:
        saved, usable = False, self._lane.usable()
        try:
            if usable:
                connector.save(block_hash, group, data)
                saved = True
        finally:
            with self._changed:
                self._queued_bytes -= data.nbytes
                self._saved += saved
                self._dropped += not usable
                self._failed += usable and not saved

    # --- loads ---

    def load(self, request_id: str, blocks: Sequence[KVOp]) -> None:
        """Begin to bring a request's blocks. How it ends is told by `progress`, once."""
        load = _Load(request_id, len(blocks))
        with self._changed:
            self._loads.append(load)
        for block in blocks:
            self._lane.add(partial(self._load_on_lane, load, block), urgent=True)

    def _load_on_lane(self, load: _Load, block: KVOp, connector: KVConnector) -> None:
        if load.failed:
            return
        data: memoryview | None = None
        try:
            if self._lane.usable():
                data = self._checked(block, connector.load(block.key, block.group))
        finally:
            with self._changed:
                if data is None:
                    self._fail(load)
                elif not load.failed:  # given up meanwhile
                    self._arrived.append((load, Arrived(block.group, block.dst, data)))
                self._changed.notify()

    def _checked(self, block: KVOp, data: bytes | bytearray | memoryview | None) -> memoryview | None:
        if data is None:
            return None  # evicted since it was looked up: no fault of anybody's
        view, due = memoryview(data).cast("B"), self._block_bytes[block.group]
        if view.nbytes == due:
            return view
        self._lane.warn(
            f"load brought {view.nbytes} bytes for a block of {due}; it is computed (key {block.key.hex()[:16]})"
        )
        return None

    def _fail(self, load: _Load) -> None:
        if not load.failed:
            load.failed = True
            self._failed += load.remaining

    def progress(self, wait_s: float) -> Progress:
        """What has happened since the last call; waits up to `wait_s` seconds for something to."""
        until = time.monotonic() + wait_s
        with self._changed:
            while not self._has_news() and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._take()

    def _has_news(self) -> bool:
        if self._loads and not self._lane.usable():
            for load in self._loads:
                self._fail(load)
        return bool(self._arrived) or any(load.failed for load in self._loads)

    def _take(self) -> Progress:
        arrived = []
        while self._arrived:
            load, block = self._arrived.popleft()
            if not load.failed:
                load.remaining -= 1
                self._loaded += 1
                arrived.append(block)
        loaded = [load.request_id for load in self._loads if not load.remaining and not load.failed]
        failed = [load.request_id for load in self._loads if load.failed]
        self._loads = [load for load in self._loads if load.remaining and not load.failed]
        return Progress(arrived, loaded, failed)
