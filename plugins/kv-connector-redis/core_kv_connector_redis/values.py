"""What lies in Redis under a key: a block's bytes behind a seal, so that nothing else is taken for it.

    b"CKV1" | BLAKE2b-128(key | data) | data

The digest (RFC 7693) covers the key as well: a value that was copied to another one is not that one's. It finds
accidents, not forgeries: whoever may write to the Redis can make a valid one.
"""

from __future__ import annotations

from hashlib import blake2b

MAGIC = b"CKV1"
_DIGEST = 16
_HEADER = len(MAGIC) + _DIGEST


def seal(key: bytes, data: memoryview) -> bytes:
    """The value to store under `key`."""
    return b"".join((MAGIC, _digest(key, data), data))


def unseal(key: bytes, value: bytes, length: int) -> memoryview | None:
    """The `length` bytes that were sealed for `key`; None for anything else."""
    if len(value) != _HEADER + length or not value.startswith(MAGIC):
        return None
    data = memoryview(value)[_HEADER:]
    return data if value[len(MAGIC) : _HEADER] == _digest(key, data) else None


def _digest(key: bytes, data: memoryview) -> bytes:
    digest = blake2b(key, digest_size=_DIGEST)
    digest.update(data)
    return digest.digest()
