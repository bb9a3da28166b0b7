"""Only what was sealed for a key is unsealed for it."""

from __future__ import annotations

import random

from core_kv_connector_redis.values import seal, unseal

KEY = b"core-kv:0123:ab:0"
DATA = bytes(range(64))


def test_what_was_sealed_is_unsealed() -> None:
    sealed = seal(KEY, memoryview(DATA))
    assert unseal(KEY, sealed, len(DATA)) == DATA
    assert unseal(KEY, seal(KEY, memoryview(b"")), 0) == b""


def test_every_flipped_bit_is_seen() -> None:
    sealed = seal(KEY, memoryview(DATA))
    for position in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        assert unseal(KEY, bytes(changed), len(DATA)) is None


def test_other_lengths_keys_and_strangers_are_refused() -> None:
    sealed = seal(KEY, memoryview(DATA))
    assert unseal(b"core-kv:0123:ab:1", sealed, len(DATA)) is None
    for value in (sealed[:-1], sealed + b"\0", b"", b"CKV1", random.Random(0).randbytes(len(sealed))):
        assert unseal(KEY, value, len(DATA)) is None
    assert unseal(KEY, sealed, len(DATA) - 1) is None
