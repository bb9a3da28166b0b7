"""KV blocks on their way between the device and a connector: the threads, the time limits, what is counted. Torch-free.

`open_index` gives the scheduler its side of the connector that was chosen, `open_blocks` the worker its own.
"""

from __future__ import annotations

from collections.abc import Callable

from core.cache.connector import ConnectorContext, KVConnector
from core.config import Config
from core.errors import CoreError
from core.extensions import Extension
from core.platform import BlockFormat
from core.transfer.blocks import Arrived, BlockTransfer
from core.transfer.index import GuardedIndex
from core.transfer.lane import Lane

__all__ = ["Arrived", "BlockTransfer", "GuardedIndex", "block_identity", "open_blocks", "open_index"]


def open_index(config: Config, blocks: BlockFormat) -> GuardedIndex | None:
    """The scheduler's side, or None where no connector was chosen. Raises what its plugin raises of our own errors,
    PluginLoadError for all others."""
    chosen = config.cache.connector
    return None if chosen is None else GuardedIndex(Lane(f"{chosen.name}-index", _maker(chosen, config, blocks)))


def open_blocks(config: Config, blocks: BlockFormat) -> BlockTransfer | None:
    """The worker's side; as `open_index`."""
    chosen = config.cache.connector
    if chosen is None:
        return None
    return BlockTransfer(Lane(f"{chosen.name}-blocks", _maker(chosen, config, blocks)), blocks.block_bytes)


def block_identity(config: Config, blocks: BlockFormat | None) -> str:
    """All that makes equal tokens mean different KV, on this machine or another (see `core.cache.prefix`)."""
    model, cache = config.model, config.cache
    parts = [model.fingerprint, model.dtype, model.quantization, cache.dtype, cache.block_size]
    if blocks is not None:
        parts += [config.platform.name, blocks.layout]
    return "/".join(map(str, parts))


def _maker(chosen: Extension, config: Config, blocks: BlockFormat) -> Callable[[], KVConnector]:
    context = ConnectorContext(
        options=chosen.options,
        identity=block_identity(config, blocks),
        block_size=config.cache.block_size,
        block_bytes=blocks.block_bytes,
    )

    def make() -> KVConnector:
        target = chosen.load()
        try:
            made = target(context)
        except CoreError:
            raise
        except Exception as error:
            raise chosen.error(f"could not be made: {type(error).__name__}: {error}") from error
        if not isinstance(made, KVConnector):
            raise chosen.error(f"is {made!r} where a core.cache.connector.KVConnector is due")
        return made

    return make
