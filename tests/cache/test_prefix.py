"""Hashes are a function of identity, salt and every token so far, equal on every machine."""

from __future__ import annotations

import hashlib
import struct

import hypothesis.strategies as st
from hypothesis import given

from core.cache.prefix import SEED, BlockHasher

TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=40)


def hashes_of(tokens: list[int], *, fingerprint: str = "model", salt: str = "", size: int = 4) -> list[bytes]:
    hasher = BlockHasher(size, fingerprint)
    hashes: list[bytes] = []
    hasher.extend(hashes, hasher.root(salt), tokens, len(tokens) // size)
    return hashes


def test_scheme_is_what_the_module_says() -> None:
    root = hashlib.sha256(SEED + struct.pack("<Q", 5) + b"model" + b"salt").digest()
    first = hashlib.sha256(root + struct.pack("<2I", 1, 2)).digest()
    second = hashlib.sha256(first + struct.pack("<2I", 3, 4)).digest()
    assert hashes_of([1, 2, 3, 4, 5], salt="salt", size=2) == [first, second]


@given(TOKENS, st.integers(0, 10))
def test_incremental_equals_whole(tokens: list[int], cut: int) -> None:
    hasher = BlockHasher(4, "model")
    hashes: list[bytes] = []
    for num_blocks in (min(cut, len(tokens) // 4), len(tokens) // 4):
        hasher.extend(hashes, hasher.root(""), tokens, num_blocks)
    assert hashes == hashes_of(tokens)


@given(TOKENS, st.data())
def test_a_changed_token_changes_its_block_and_all_after(tokens: list[int], data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(tokens) // 4 * 4 - 1))
    changed = [*tokens[:where], tokens[where] ^ 1, *tokens[where + 1 :]]
    before, after = hashes_of(tokens), hashes_of(changed)
    assert before[: where // 4] == after[: where // 4]
    assert all(old != new for old, new in zip(before[where // 4 :], after[where // 4 :], strict=True))


def test_fingerprint_and_salt_do_not_run_into_each_other() -> None:
    tokens = [1, 2, 3, 4]
    pairs = [("model", ""), ("mode", "l"), ("", "model"), ("model", "salt")]
    names = [hashes_of(tokens, fingerprint=fingerprint, salt=salt)[0] for fingerprint, salt in pairs]
    assert len(set(names)) == len(pairs)
