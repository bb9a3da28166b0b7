"""Blocks are handed out once, found by hash until reused, and reused in the order of their release."""

from __future__ import annotations

import pytest

from core.cache.pool import BlockPool
from core.errors import CoreError
from core.types import NULL_BLOCK


def test_null_block_is_never_handed_out() -> None:
    pool = BlockPool(5)
    assert pool.capacity == 4
    assert NULL_BLOCK not in pool.allocate(4)
    assert pool.num_free == 0
    with pytest.raises(KeyError):
        pool.allocate(1)


def test_longest_unused_block_is_reused_first_and_forgets_its_hash() -> None:
    pool = BlockPool(4)
    first, second, third = pool.allocate(3)
    for block, name in ((first, b"1"), (second, b"2"), (third, b"3")):
        pool.register(block, name)
    for block in (second, first, third):
        pool.release(block)
    assert pool.find_all([b"1", b"2", b"3"]) == [first, second, third]
    assert pool.allocate(1) == [second]
    assert not pool.has(b"2")
    assert pool.has(b"1")
    assert pool.has(b"3")


def test_block_without_hash_is_reused_before_cached_ones() -> None:
    pool = BlockPool(3)
    cached, plain = pool.allocate(2)
    pool.register(cached, b"1")
    pool.release(cached)
    pool.release(plain)
    assert pool.allocate(2) == [plain, cached]


def test_sharing_revives_a_free_block() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.register(block, b"1")
    pool.release(block)
    pool.share(block)
    pool.share(block)
    assert (pool.num_owners(block), pool.num_free) == (2, 0)
    pool.release(block)
    assert pool.num_free == 0
    pool.release(block)
    assert pool.num_free == 1


def test_first_block_of_a_content_stays_the_one_that_is_found() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.register(first, b"1")
    pool.register(second, b"1")
    assert pool.find_all([b"1"]) == [first]
    pool.release(second)
    assert pool.allocate(1) == [second]
    assert pool.has(b"1")


def test_releasing_twice_names_the_block() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.release(block)
    with pytest.raises(CoreError, match=f"block {block} was freed twice"):
        pool.release(block)
