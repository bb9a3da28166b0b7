"""The contract of KV connectors: stores of KV blocks outside the device, as host memory, a disk, another machine.

A plugin of the group `core.plugins` names one in its hook `kv_connectors`, as a callable `make(context)`, and
`--kv-connector NAME` chooses it. `make` is called once for each side, the scheduler's and the worker's, and reads
its options there; raising ConfigError for one that will not do stops the start-up. The two sides may be in different
processes, so they share nothing but what they store; each is used by one thread, one call at a time.

The unit is a block of one KV group under its block hash: SHA-256 over the model's weights, the element types, the
layout in which the platform exports blocks, the request's salt and all tokens up to the block's end
(`core.cache.prefix`). Equal hashes are equal contents, so nothing is ever updated.

The core owns the threads, the order and what goes wrong. A call that raises, that takes too long (`lookup` 0.1 s,
others 2 s) or that brings other than was saved costs a computation and no request: it is logged and counted, and the
connector is left alone for some seconds. Saves are dropped rather than waited for. docs/kv-connectors.md walks
through an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec


class ConnectorContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a connector is made from.

    `options` are the plugin's, given with `--plugin-opt PLUGIN.KEY=VALUE`. `identity` names what blocks mean, all but
    salt and tokens: it is in every hash already, and may serve to tell one model's blocks from another's.
    `block_bytes[group]` are the bytes of a block in each KV group, `block_size` the tokens in one.
    """

    options: dict[str, str]
    identity: str
    block_size: int
    block_bytes: tuple[int, ...]


class KVIndex(ABC):
    """What the scheduler asks of a connector, in its turn."""

    @abstractmethod
    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        """How many blocks it can bring after the first `num_local`: `hashes[num_local : num_local + n]`.

        `hashes` are those of a request's full blocks, first to last. A block counts if all of its groups are there.
        Every running request waits meanwhile, so it answers from memory, or by one short question to a server near by.
        """

    def wants(self, block_hash: bytes) -> bool:
        """Whether a block that has just been filled shall be saved; by default all are. It answers from memory."""
        del block_hash
        return True


class KVConnector(KVIndex):
    """A store of KV blocks. `lookup` and `wants` are called on the scheduler's side, `save` and `load` on the worker's.

    Any of them may raise what it likes.
    """

    @abstractmethod
    def save(self, block_hash: bytes, group: int, data: memoryview) -> None:
        """Keep `data`, `block_bytes[group]` long and valid during the call; whole or not at all, even if the process
        dies on the way. May block."""

    @abstractmethod
    def load(self, block_hash: bytes, group: int) -> bytes | bytearray | memoryview | None:
        """What was saved, or None if it is not there any more or is not what was saved. May block."""

    def close(self) -> None:
        """The last call."""
