"""A connector that keeps blocks in a dictionary, and goes wrong in the way that its option says."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from shelf_plugin import Options

from core.cache.connector import ConnectorContext, KVConnector
from core.hookspecs import parse_own_options

#: What was kept, by the name of the store.
STORES: dict[str, dict[tuple[bytes, int], bytes]] = {}
#: Every context that a connector was made from.
CONTEXTS: list[ConnectorContext] = []
#: Ends all calls that hang.
RELEASE = threading.Event()


class Shelf(KVConnector):
    """Both sides of a store."""

    def __init__(self, context: ConnectorContext) -> None:
        options = parse_own_options("shelf", context.options, Options, flag="--plugin-opt")
        if options.fault == "make":
            raise OSError("the shelf is not mounted")
        CONTEXTS.append(context)
        self._fault = options.fault
        self._kept = STORES.setdefault(options.store, {})
        self._groups = range(len(context.block_bytes))

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        if self._fault == "raise":
            raise OSError("the shelf has fallen")
        for count, block_hash in enumerate(hashes[num_local:]):
            if any((block_hash, group) not in self._kept for group in self._groups):
                return count
        return len(hashes) - num_local

    def save(self, block_hash: bytes, group: int, data: memoryview) -> None:
        if self._fault == "raise":
            raise OSError("the shelf has fallen")
        self._kept[block_hash, group] = bytes(data)

    def load(self, block_hash: bytes, group: int) -> bytes | None:
        if self._fault == "raise-load":
            raise OSError("the shelf has fallen")
        if self._fault == "hang":
            RELEASE.wait(60)
        if self._fault == "forget":
            return None
        data = self._kept[block_hash, group]
        return data[:-1] if self._fault == "short" else data


class NotAConnector:
    """What a plugin may name by mistake."""

    def __init__(self, context: ConnectorContext) -> None:
        pass
