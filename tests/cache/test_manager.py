"""Tables, prefix matches and windows, with one sequence or two."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from core.cache import BlockTables, CacheManager
from core.errors import ConfigError
from core.types import NULL_BLOCK, KVGroupSpec

FULL = KVGroupSpec(layers=(0,), num_kv_heads=1, head_dim=8)
SLIDING = KVGroupSpec(layers=(1,), num_kv_heads=1, head_dim=8, window=5)
SIZE = 4


def make_cache(*groups: KVGroupSpec, num_blocks: int = 9, caching: bool = True) -> CacheManager:
    return CacheManager(groups, num_blocks, SIZE, enable_prefix_caching=caching, fingerprint="model")


def compute(cache: CacheManager, tokens: list[int]) -> BlockTables:
    """Admit and compute `tokens` at once."""
    blocks = cache.new_tables()
    assert cache.admit(blocks, cache.match(blocks, tokens), len(tokens), len(tokens))
    cache.register(blocks, tokens, len(tokens))
    return blocks


def test_sizes_that_hold_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        make_cache(FULL, num_blocks=1)
    with pytest.raises(ConfigError, match="--block-size"):
        CacheManager([FULL], 9, 0, enable_prefix_caching=True, fingerprint="")


def test_equal_prefix_is_shared_and_the_last_token_is_left_to_compute() -> None:
    cache = make_cache(FULL)
    tokens = list(range(8))
    first = compute(cache, tokens)
    assert cache.match(cache.new_tables(), [*tokens, 8]).tables == [first.tables[0]]
    assert cache.match(cache.new_tables(), tokens).tables == [first.tables[0][:1]]
    assert cache.match(cache.new_tables("salt"), tokens).num_blocks == 0
    assert cache.match(cache.new_tables(), [9, *tokens]).num_blocks == 0


def test_nothing_is_found_with_caching_off() -> None:
    cache = make_cache(FULL, caching=False)
    compute(cache, list(range(8)))
    assert cache.match(cache.new_tables(), list(range(9))).num_blocks == 0


def test_release_keeps_content_and_gives_up_the_tail_first() -> None:
    cache = make_cache(FULL, num_blocks=4)
    tokens = list(range(12))
    cache.release(compute(cache, tokens))
    assert cache.usage == 0.0
    compute(cache, [99])
    assert cache.match(cache.new_tables(), [*tokens, 12]).num_blocks == 2


def test_admit_is_all_or_nothing_over_groups() -> None:
    cache = make_cache(FULL, SLIDING)
    cache.pools[1].allocate(7)
    blocks = cache.new_tables()
    assert not cache.admit(blocks, cache.match(blocks, list(range(8))), 8, 8)
    assert [pool.num_free for pool in cache.pools] == [8, 1]
    assert blocks.tables == [[], []]


def test_grow_is_all_or_nothing_over_groups() -> None:
    cache = make_cache(FULL, SLIDING)
    blocks = compute(cache, [1, 2, 3])
    cache.pools[1].allocate(7)
    assert not cache.grow(blocks, 4, 5)
    assert cache.pools[0].num_free == 7
    cache.pools[1].release(cache.pools[1].num_blocks - 1)
    assert cache.grow(blocks, 4, 5)
    assert [len(table) for table in blocks.tables] == [2, 2]
    assert blocks.capacity == 8


def test_admission_leaves_room_for_the_rest_of_the_prefill() -> None:
    cache = make_cache(FULL, num_blocks=5)
    blocks = cache.new_tables()
    miss = cache.match(blocks, [1])
    assert not cache.admit(blocks, miss, 4, 17)
    assert cache.admit(blocks, miss, 4, 16)
    assert cache.pools[0].num_free == 3


def test_hits_that_are_free_do_not_count_as_room() -> None:
    cache = make_cache(FULL, num_blocks=4)
    tokens = list(range(8))
    cache.release(compute(cache, tokens))
    blocks = cache.new_tables()
    hit = cache.match(blocks, list(range(16)))
    assert hit.num_blocks == 2
    assert not cache.admit(blocks, hit, 16, 16)
    assert cache.pools[0].num_free == 3


def test_window_gives_back_what_it_has_passed() -> None:
    cache = make_cache(FULL, SLIDING)
    blocks = compute(cache, list(range(16)))
    held = list(blocks.tables[1])
    assert cache.grow(blocks, 16, 17)
    # Position 16 sees 12 … 16, so blocks 0, 1 and 2 are out of sight.
    assert blocks.tables[1][:4] == [NULL_BLOCK, NULL_BLOCK, NULL_BLOCK, held[3]]
    assert NULL_BLOCK not in blocks.tables[0]
    assert [pool.num_free for pool in cache.pools] == [3, 6]


def test_hit_in_a_window_needs_only_what_can_be_read() -> None:
    cache = make_cache(FULL, SLIDING)
    tokens = list(range(17))
    blocks = compute(cache, tokens)
    assert cache.grow(blocks, 16, 17)
    hit = cache.match(cache.new_tables(), tokens)
    assert hit.tables == [blocks.tables[0][:4], [NULL_BLOCK, NULL_BLOCK, NULL_BLOCK, blocks.tables[1][3]]]
    # Shorter prefixes end where the window's blocks have been given up; they are still in the pool, as free ones.
    assert cache.match(cache.new_tables(), tokens[:9]).num_blocks == 2
    cache.pools[1].allocate(cache.pools[1].num_free)
    assert cache.match(cache.new_tables(), tokens).num_blocks == 4
    assert cache.match(cache.new_tables(), tokens[:9]).num_blocks == 0


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.integers(1, 14))
def test_longest_match_equals_brute_force(in_full: set[int], in_window: set[int], window: int) -> None:
    cache = make_cache(FULL, KVGroupSpec(layers=(1,), num_kv_heads=1, head_dim=8, window=window), num_blocks=12)
    tokens = list(range(10 * SIZE + 1))
    hashes = cache.full_block_hashes(cache.new_tables(), tokens, len(tokens))
    for pool, present in zip(cache.pools, (in_full, in_window), strict=True):
        for index in present:
            pool.register(index + 1, hashes[index])

    def is_valid(length: int) -> bool:
        read = range(max(0, length * SIZE - window + 1), length * SIZE)
        return set(range(length)) <= in_full and {position // SIZE for position in read} <= in_window

    assert cache.match(cache.new_tables(), tokens).num_blocks == max(filter(is_valid, range(11)))


def test_sharing_a_prefix_stops_where_a_window_has_passed() -> None:
    cache = make_cache(FULL, SLIDING)
    blocks = compute(cache, list(range(10)))
    shared = cache.share_prefix(blocks, 9)
    assert shared is not None
    assert shared.num_blocks == 2
    assert shared.tables == [blocks.tables[0][:2], [NULL_BLOCK, blocks.tables[1][1]]]
    assert cache.grow(blocks, 16, 17)
    assert cache.share_prefix(blocks, 9) is None


def test_what_fits_alone() -> None:
    cache = make_cache(FULL, num_blocks=5)
    assert cache.fits(16, 100)
    assert not cache.fits(17, 100)
    sliding = make_cache(SLIDING, num_blocks=5)
    assert sliding.fits(1000, 8)  # ceil((4 + 8) / 4) + 1 blocks
    assert not sliding.fits(1000, 9)


def test_reserve_skips_what_a_window_has_passed() -> None:
    cache = make_cache(FULL, SLIDING)
    blocks = cache.new_tables()
    assert cache.reserve(blocks, cache.match(blocks, list(range(13))), 3)
    assert blocks.tables[0] == [1, 2, 3]
    assert blocks.tables[1] == [NULL_BLOCK, NULL_BLOCK, 1]
    assert not cache.reserve(cache.new_tables(), cache.match(blocks, [1]), 6)


def test_what_is_forgotten_is_not_found_and_nothing_owned_is_forgotten() -> None:
    cache = make_cache(FULL, SLIDING)
    tokens = list(range(8))
    blocks = compute(cache, tokens)
    assert not cache.forget()
    assert cache.match(cache.new_tables(), [*tokens, 8]).num_blocks == 2
    cache.release(blocks)
    assert cache.forget()
    assert cache.match(cache.new_tables(), [*tokens, 8]).num_blocks == 0
    compute(cache, tokens)
    assert cache.match(cache.new_tables(), [*tokens, 8]).num_blocks == 2
