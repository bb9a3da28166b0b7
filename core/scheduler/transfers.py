"""KV that a connector brings for a request, or takes after one has computed it."""

from __future__ import annotations

from core.cache import CacheManager, KVIndex, PrefixHit
from core.errors import PlatformError
from core.scheduler.request import Request, Status
from core.types import NULL_BLOCK, KVOp


class Transfers:
    """The loads under way and the saves to be made. Without a connector there are none."""

    def __init__(self, cache: CacheManager, connector: KVIndex | None) -> None:
        self._cache = cache
        self._connector = connector
        self._loading: dict[str, Request] = {}  # also those that ended while the connector still writes
        self._saves: list[KVOp] = []
        self.num_queried = 0  # tokens that the connector was asked for
        self.num_brought = 0  # of these, tokens whose blocks it has brought

    @property
    def num_loading(self) -> int:
        """Requests whose blocks are being written, ended ones included."""
        return len(self._loading)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their blocks."""
        return sum(request.status is Status.WAITING_FOR_KV for request in self._loading.values())

    @property
    def is_pending(self) -> bool:
        """Whether there is anything to move or to wait for."""
        return bool(self._loading or self._saves)

    def is_loading(self, request_id: str) -> bool:
        """Whether blocks are being written under this id."""
        return request_id in self._loading

    def start_loading(self, kv_ops: list[KVOp], request: Request, hit: PrefixHit) -> bool:
        """Add the loads to `kv_ops` if the connector has more than `hit`, and there are blocks to bring it into.

        The connector is asked once for each request, which may wait for room for many turns, and loads are made once, so
        that a request whose blocks are lost again is computed in the end.
        """
        if self._connector is None or request.kv_found == 0:
            return False
        blocks = request.blocks
        hashes = self._cache.full_block_hashes(blocks, request.token_ids, request.num_tokens - 1)
        if request.kv_found is None:
            self.num_queried += (len(hashes) - hit.num_blocks) * self._cache.block_size
            request.kv_found = hit.num_blocks + self._connector.lookup(hashes, hit.num_blocks)
        end = min(request.kv_found, len(hashes))
        if end <= hit.num_blocks or not self._cache.reserve(blocks, hit, end):
            return False
        for group, table in enumerate(blocks.tables):
            for index in range(hit.num_blocks, end):
                if table[index] != NULL_BLOCK:
                    kv_ops.append(KVOp("load", group, NULL_BLOCK, table[index], hashes[index], request.request_id))
        request.kv_found = 0
        self._loading[request.request_id] = request
        return True

    def finish_loading(self, request_id: str, *, loaded: bool) -> Request:
        """What was brought becomes free blocks that are found by hash: a request that does not run owns nothing, so
        waiting ones cannot lock each other out. Raises PlatformError if nothing was being loaded."""
        request = self._loading.pop(request_id, None)
        if request is None:
            raise PlatformError(f"the executor reports the end of KV loads for {request_id!r}, which waits for none")
        if loaded:
            first = request.blocks.num_registered * self._cache.block_size
            self.num_brought += request.blocks.capacity - first
            self._cache.register(request.blocks, request.token_ids, request.blocks.capacity)
        self._cache.release(request.blocks)
        return request

    def offer(self, request: Request, new: range) -> None:
        """Note a save for each block of `new` indices that the connector wants."""
        if self._connector is None:
            return
        blocks = request.blocks
        for index in new:
            block_hash = blocks.hashes[index]
            if self._connector.wants(block_hash):
                for group, table in enumerate(blocks.tables):
                    if table[index] != NULL_BLOCK:
                        self._saves.append(
                            KVOp("save", group, table[index], NULL_BLOCK, block_hash, request.request_id)
                        )

    def take_saves(self) -> list[KVOp]:
        """The saves for the next plan to begin with: the step that fills the blocks comes before it, and whatever
        overwrites them after."""
        saves, self._saves = self._saves, []
        return saves
