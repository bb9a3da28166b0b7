"""Chained block hashes: the name under which a full block of KV can be found again.

    root    = SHA-256(SEED | length of fingerprint | fingerprint | salt)
    hash[i] = SHA-256(hash[i - 1] or root | tokens of block i as little-endian uint32)

A block's KV depends on every token before it, so its name does too. Nothing in it is random or of this machine:
servers that run the same weights in the same layout give equal prefixes equal names. A collision would show one
client another's text, hence a cryptographic hash (FIPS 180-4) and not Python's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

#: Names the scheme above; another scheme takes another seed.
SEED = b"core.kv.1"


class BlockHasher:
    """Hashes the full blocks of token sequences, `block_size` tokens each.

    `fingerprint` names the model's weights, the KV dtype and the KV layout: all that makes equal tokens mean
    different KV.
    """

    def __init__(self, block_size: int, fingerprint: str) -> None:
        self._block_size = block_size
        self._pack = struct.Struct(f"<{block_size}I").pack
        identity = fingerprint.encode()
        self._prefix = SEED + struct.pack("<Q", len(identity)) + identity

    def root(self, salt: str) -> bytes:
        """What the first block chains to. Requests with different salts share nothing."""
        return hashlib.sha256(self._prefix + salt.encode()).digest()

    def extend(self, hashes: list[bytes], root: bytes, token_ids: Sequence[int], num_blocks: int) -> None:
        """Append to `hashes`, which covers the first blocks of `token_ids`, until it covers `num_blocks`."""
        size, pack, sha256 = self._block_size, self._pack, hashlib.sha256
        parent = hashes[-1] if hashes else root
        for start in range(len(hashes) * size, num_blocks * size, size):
            parent = sha256(parent + pack(*token_ids[start : start + size])).digest()
            hashes.append(parent)
