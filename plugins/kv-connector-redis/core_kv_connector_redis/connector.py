"""The connector. What Redis does wrong is raised: the core computes instead, and leaves Redis alone for a while."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.cache.connector import ConnectorContext, KVConnector
from core.errors import ConfigError
from core.hookspecs import parse_own_options
from core.logs import get_logger
from core_kv_connector_redis.plugin import NAME, Options
from core_kv_connector_redis.values import seal, unseal

log = get_logger("kv_connector.redis")

#: Blocks that one EXISTS asks for.
_BATCH = 64


class RedisConnector(KVConnector):
    """Keys are `PREFIX:MODEL:HASH:GROUP`, where MODEL stands for all but the tokens that makes blocks differ.

    A value is written by one SET, so it is whole or not there. Connections are made when they are first needed.
    """

    def __init__(self, context: ConnectorContext) -> None:
        """Raises ConfigError on an option that will not do."""
        options = parse_own_options(NAME, context.options, Options, flag="--plugin-opt")
        for group, size in enumerate(context.block_bytes):
            if size > options.max_value_bytes:
                raise ConfigError(
                    f"--plugin-opt {NAME}.max_value_bytes",
                    f"a block of KV group {group} has {size} bytes, more than {options.max_value_bytes}; raise it, or "
                    "lower --block-size",
                )
        self._block_bytes = context.block_bytes
        self._ttl = options.ttl
        self._scope = f"{options.prefix}:{sha256(context.identity.encode()).hexdigest()[:16]}:".encode()
        self._lookups = _client(options, options.lookup_timeout)
        self._blocks = _client(options, options.timeout)

    # --- the scheduler's side ---

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        """One round trip, and a second one to find the end of what is there."""
        wanted = hashes[num_local:]
        batches = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
        for number, (batch, count) in enumerate(zip(batches, self._count(batches), strict=True)):
            if count < len(batch) * len(self._block_bytes):
                return number * _BATCH + (self._complete(batch) if count else 0)
        return len(wanted)

    def _complete(self, hashes: Sequence[bytes]) -> int:
        """How many of them, from the first, are there with all groups."""
        counts = self._count([[block_hash] for block_hash in hashes])
        groups = len(self._block_bytes)
        return next((index for index, count in enumerate(counts) if count < groups), len(hashes))

    def _count(self, batches: Sequence[Sequence[bytes]]) -> list[int]:
        """The values that are there of each batch of blocks."""
        groups = range(len(self._block_bytes))
        with self._lookups.pipeline(transaction=False) as pipeline:
            for batch in batches:
                pipeline.exists(*(self._key(block_hash, group) for block_hash in batch for group in groups))
            counts: list[int] = pipeline.execute()
        return counts

    # --- the worker's side ---

    def save(self, block_hash: bytes, group: int, data: memoryview) -> None:
        """Send it, unless it is there: then it only lives on."""
        key = self._key(block_hash, group)
        known = self._blocks.expire(key, self._ttl) if self._ttl else self._blocks.exists(key)
        if not known:
            self._blocks.set(key, seal(key, data), ex=self._ttl or None)

    def load(self, block_hash: bytes, group: int) -> memoryview | None:
        """Bring it, and let it live on. What is there and is not the block is removed, so that it can be saved again."""
        key = self._key(block_hash, group)
        value: Any = self._blocks.getex(key, ex=self._ttl) if self._ttl else self._blocks.get(key)
        if value is None:
            return None
        data = unseal(key, value, self._block_bytes[group])
        if data is None:
            log.warning("a value in Redis is not the block that it should be and is removed", key=key.decode())
            self._blocks.delete(key)
        return data

    def close(self) -> None:
        """Close the connections."""
        self._lookups.close()
        self._blocks.close()

    def _key(self, block_hash: bytes, group: int) -> bytes:
        return b"%b%b:%d" % (self._scope, block_hash.hex().encode(), group)


def _client(options: Options, timeout: float) -> redis.Redis:
    try:
        return redis.Redis.from_url(
            options.url,
            socket_timeout=timeout,
            socket_connect_timeout=options.connect_timeout,
            # A connection that the server has closed is made anew; what takes too long is not tried again.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            **_password(options),
        )
    except ValueError as error:
        raise ConfigError(f"--plugin-opt {NAME}.url", f"{error}") from error


def _password(options: Options) -> dict[str, str]:
    if not options.password_file:
        return {}
    try:
        return {"password": Path(options.password_file).read_text(encoding="utf-8").strip()}
    except OSError as error:
        raise ConfigError(
            f"--plugin-opt {NAME}.password_file", f"cannot read {options.password_file!r}: {error.strerror}"
        ) from error
