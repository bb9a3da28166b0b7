"""KV blocks in motion on the thread of the steps: copied on the device, exported to a connector, imported from one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from core.errors import Unsupported
from core.platform import AttentionBackend
from core.transfer import Arrived, BlockTransfer
from core.types import KVGroupSpec, KVOp, KVTransferStats

#: How long a step with nothing to do waits for a load to end. Requests that arrive wait for it too.
_POLL_S = 0.01


class BlockMover:
    """Carries out the KV operations of plans. A block's data is that of its group's layers, in their order."""

    def __init__(
        self,
        attention: AttentionBackend,
        groups: Sequence[KVGroupSpec],
        caches: Mapping[int, Sequence[Any]],
        layer_bytes: Mapping[int, int],
        transfer: BlockTransfer | None,
    ) -> None:
        """`layer_bytes`: of a block, by layer. `transfer`: None where there is no connector."""
        self._attention = attention
        self._groups = groups
        self._caches = caches
        self._layer_bytes = layer_bytes
        self._transfer = transfer

    def move(self, operations: Sequence[KVOp]) -> None:
        """Carry them out in their order; saves and loads go on in the background from what lies here now."""
        for (kind, group), run in itertools.groupby(operations, lambda operation: (operation.kind, operation.group)):
            if kind == "copy":
                self._copy(group, list(run))
            elif kind == "save":
                self._save(group, list(run))
        by_request: dict[str, list[KVOp]] = {}
        for operation in operations:
            if operation.kind == "load":
                by_request.setdefault(operation.request_id, []).append(operation)
        for request_id, loads in by_request.items():
            self._connected().load(request_id, loads)

    def take_in(self, *, wait: bool) -> tuple[list[str], list[str]]:
        """Import what has been brought. Returns whose blocks are all here, and whose will not be; with `wait` it waits
        a moment for one of them."""
        if self._transfer is None:
            return [], []
        until = time.monotonic() + (_POLL_S if wait else 0.0)
        while True:
            progress = self._transfer.progress(until - time.monotonic())
            self._import(progress.arrived)
            if progress.loaded or progress.failed or time.monotonic() >= until:
                return list(progress.loaded), list(progress.failed)

    def stats(self) -> KVTransferStats:
        """What the connector has done."""
        return self._transfer.stats() if self._transfer is not None else KVTransferStats()

    def close(self) -> None:
        """End the connector. May be called twice."""
        if self._transfer is not None:
            self._transfer.close()

    # --- inside ---

    def _connected(self) -> BlockTransfer:
        if self._transfer is None:
            raise Unsupported("moving KV blocks to or from outside", "no KV connector is configured")
        return self._transfer

    def _copy(self, group: int, operations: Iterable[KVOp]) -> None:
        pairs = [(operation.src, operation.dst) for operation in operations]
        for layer in self._groups[group].layers:
            self._attention.copy_blocks(self._caches[layer], pairs)

    def _save(self, group: int, operations: Sequence[KVOp]) -> None:
        transfer = self._connected()
        taken = operations[: transfer.room(group, len(operations))]
        if not taken:
            return
        blocks = [operation.src for operation in taken]
        layers = [self._attention.export_blocks(self._caches[layer], blocks) for layer in self._groups[group].layers]
        rows = torch.cat(layers, dim=1).numpy()
        for operation, row in zip(taken, rows, strict=True):
            transfer.save(operation.key, group, row.data.toreadonly())

    def _import(self, arrived: Sequence[Arrived]) -> None:
        for group in sorted({block.group for block in arrived}):
            mine = [block for block in arrived if block.group == group]
            layers = self._groups[group].layers
            sizes = [self._layer_bytes[layer] for layer in layers]
            data = torch.empty(len(mine), sum(sizes), dtype=torch.uint8)
            for row, block in zip(data.numpy(), mine, strict=True):
                row[:] = np.frombuffer(block.data, np.uint8)
            for layer, part in zip(layers, data.split(sizes, dim=1), strict=True):
                self._attention.import_blocks(self._caches[layer], [block.block for block in mine], part)
