"""A file for each block of each group; servers that share the directory share the blocks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from acme_directory.plugin import DirectoryOptions

from core.cache.connector import ConnectorContext, KVConnector
from core.hookspecs import parse_own_options


class DirectoryStore(KVConnector):
    """Made twice, on the scheduler's side and on the worker's: what they share is the directory."""

    def __init__(self, context: ConnectorContext) -> None:
        options = parse_own_options("acme_directory", context.options, DirectoryOptions, flag="--plugin-opt")
        self._folder = Path(options.path)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sizes = context.block_bytes

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        """The run of blocks that are there in all groups."""
        found = 0
        for block_hash in hashes[num_local:]:
            if not all(self._file(block_hash, group).exists() for group in range(len(self._sizes))):
                break
            found += 1
        return found

    def save(self, block_hash: bytes, group: int, data: memoryview) -> None:
        """Written beside, then renamed: a file is whole or not there."""
        handle, name = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, self._file(block_hash, group))

    def load(self, block_hash: bytes, group: int) -> bytes | None:
        """None where the file is gone, or is not of a block's size."""
        try:
            data = self._file(block_hash, group).read_bytes()
        except FileNotFoundError:
            return None
        return data if len(data) == self._sizes[group] else None

    def _file(self, block_hash: bytes, group: int) -> Path:
        return self._folder / f"{block_hash.hex()}.{group}"
