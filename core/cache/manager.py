"""Block tables for every KV group, prefix reuse, and sliding windows, on top of the block pools.

The tables of one sequence have the same length in every group: entry `i` stands for the positions
`[i * block_size, (i + 1) * block_size)`, or is `NULL_BLOCK` where a sliding window has passed it.

Invariant: a position is only ever written into a block that has one owner and no hash. Shared blocks lie wholly
below the first position that a sequence computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from core.cache.pool import BlockPool
from core.cache.prefix import BlockHasher
from core.errors import ConfigError
from core.types import NULL_BLOCK, KVGroupSpec


class BlockTables:
    """What the cache keeps for one sequence.

    `tables[group][index]` are block ids; `capacity` the tokens they have room for; `hashes` the chained hashes of
    the full blocks so far, kept when the blocks are given back; `num_registered` how many blocks, from the first,
    can be found by others; `next_full` the length at which the next one could be.
    """

    __slots__ = ("capacity", "hashes", "next_full", "num_registered", "root", "tables")

    def __init__(self, num_groups: int, root: bytes) -> None:
        self.root = root
        self.hashes: list[bytes] = []
        self.tables: list[list[int]] = [[] for _ in range(num_groups)]
        self.capacity = 0
        self.num_registered = 0
        self.next_full = sys.maxsize


class PrefixHit(NamedTuple):
    """Blocks that hold a sequence's beginning: `tables[group][:num_blocks]`, `NULL_BLOCK` outside a window."""

    num_blocks: int
    tables: list[list[int]]


class CacheManager:
    """Hands out the KV blocks of all groups, of which an encoder has none.

    num_blocks: blocks in each group's pool, `NULL_BLOCK` included. block_size: tokens in a block. fingerprint: names
    the weights, the KV dtype and the layout (see `core.cache.prefix`). Raises ConfigError for sizes that hold nothing.
    """

    def __init__(
        self,
        groups: Sequence[KVGroupSpec],
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_caching: bool,
        fingerprint: str,
    ) -> None:
        if block_size < 1:
            raise ConfigError("--block-size", f"{block_size} is less than one token")
        if num_blocks < 2:
            raise ConfigError(
                "--kv-cache-memory", f"{num_blocks} block(s) hold no token, as block 0 is reserved; raise it"
            )
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pools = [BlockPool(num_blocks) for _ in groups]
        self._windows = [group.window for group in groups]
        self._hasher = BlockHasher(block_size, fingerprint)

    @property
    def usage(self) -> float:
        """Fraction of the blocks that is owned, in the fullest group."""
        return 1.0 - min((pool.num_free / pool.capacity for pool in self.pools), default=1.0)

    def fits(self, num_tokens: int, max_chunk: int) -> bool:
        """Whether a sequence of `num_tokens`, computed at most `max_chunk` at a time, fits while alone."""
        whole = self._num_blocks(num_tokens)
        for window, pool in zip(self._windows, self.pools, strict=True):
            held = whole if window is None else min(whole, self._num_blocks(window - 1 + max_chunk) + 1)
            if held > pool.capacity:
                return False
        return True

    def new_tables(self, cache_salt: str = "") -> BlockTables:
        """Empty tables for a sequence."""
        root = self._hasher.root(cache_salt) if self.enable_prefix_caching else b""
        return BlockTables(len(self.pools), root)

    # --- prefixes --------------------------------------------------------------------------------------------

    def match(self, blocks: BlockTables, token_ids: Sequence[int]) -> PrefixHit:
        """The longest beginning of `token_ids` whose KV is in every group, short of the last token, which has to be
        computed to be sampled from. Owns nothing yet."""
        if not self.enable_prefix_caching:
            return self.no_hit()
        hashes = self.full_block_hashes(blocks, token_ids, len(token_ids) - 1)
        length = self._match_length(hashes)
        tables = []
        for window, pool in zip(self._windows, self.pools, strict=True):
            start = self._first_read(window, length * self.block_size)
            tables.append([NULL_BLOCK] * start + pool.find_all(hashes[start:length]))
        return PrefixHit(length, tables)

    def no_hit(self) -> PrefixHit:
        """For a sequence that is computed from its first token on."""
        return PrefixHit(0, [[] for _ in self.pools])

    def share_prefix(self, parent: BlockTables, num_tokens: int) -> PrefixHit | None:
        """What a copy of a sequence that goes on from position `num_tokens` can share of `parent`'s blocks: the
        whole ones below that position. None if a window has already passed some of them by."""
        length = num_tokens // self.block_size
        tables = []
        for window, table in zip(self._windows, parent.tables, strict=True):
            start = self._first_read(window, num_tokens)
            if NULL_BLOCK in table[start : length + 1]:
                return None
            tables.append([NULL_BLOCK] * start + table[start:length])
        return PrefixHit(length, tables)

    def full_block_hashes(self, blocks: BlockTables, token_ids: Sequence[int], num_tokens: int) -> list[bytes]:
        """The hashes of the full blocks among the first `num_tokens` tokens; each is computed once."""
        num_blocks = num_tokens // self.block_size
        self._hasher.extend(blocks.hashes, blocks.root, token_ids, num_blocks)
        return blocks.hashes[:num_blocks]

    def register(self, blocks: BlockTables, token_ids: Sequence[int], num_tokens: int) -> range:
        """Let others find the full blocks among the first `num_tokens` tokens, which this or an earlier step writes.

        Returns the indices of the blocks that are new.
        """
        new = range(blocks.num_registered, num_tokens // self.block_size)
        if new:
            hashes = self.full_block_hashes(blocks, token_ids, num_tokens)
            for pool, table in zip(self.pools, blocks.tables, strict=True):
                for index in new:
                    if table[index] != NULL_BLOCK:
                        pool.register(table[index], hashes[index])
            self._set_registered(blocks, new.stop)
        return new

    # --- blocks ----------------------------------------------------------------------------------------------

    def admit(self, blocks: BlockTables, hit: PrefixHit, num_tokens: int, total: int) -> bool:
        """Own `hit`'s blocks, and new ones up to `num_tokens`; False, and nothing changed, if there are too few.

        It also takes room for all `total` tokens in the groups with full attention: a sequence that could not finish
        its prefill would only be preempted and computed again.
        """
        needed = self._num_blocks(num_tokens) - hit.num_blocks
        whole = self._num_blocks(total) - hit.num_blocks
        for window, pool, table in zip(self._windows, self.pools, hit.tables, strict=True):
            if (needed if window is not None else whole) > pool.num_free - _num_unowned(pool, table):
                return False
        self._own(blocks, hit, [hit.num_blocks] * len(self.pools), hit.num_blocks + needed)
        return True

    def reserve(self, blocks: BlockTables, hit: PrefixHit, num_blocks: int) -> bool:
        """Own `hit`'s blocks, and new ones up to `num_blocks` for a connector to fill; False, and nothing changed,
        if there are too few. A window's group gets only those that can still be read."""
        end = num_blocks * self.block_size
        starts = [max(hit.num_blocks, self._first_read(window, end)) for window in self._windows]
        for start, pool, table in zip(starts, self.pools, hit.tables, strict=True):
            if num_blocks - start > pool.num_free - _num_unowned(pool, table):
                return False
        self._own(blocks, hit, starts, num_blocks)
        return True

    def grow(self, blocks: BlockTables, num_computed: int, num_tokens: int) -> bool:
        """Room for `num_tokens` in every group, or in none and False. Blocks that no position from `num_computed` on
        can read are given back first."""
        self._pass_window(blocks, num_computed)
        needed = self._num_blocks(num_tokens) - len(blocks.tables[0])
        for pool in self.pools:
            if pool.num_free < needed:
                return False
        for pool, table in zip(self.pools, blocks.tables, strict=True):
            table.extend(pool.allocate(needed))
        blocks.capacity += needed * self.block_size
        return True

    def release(self, blocks: BlockTables) -> None:
        """Give every block back. The last ones go first, so that they are reused before the more common head."""
        for pool, table in zip(self.pools, blocks.tables, strict=True):
            for block in reversed(table):
                if block != NULL_BLOCK:
                    pool.release(block)
            table.clear()
        blocks.capacity = 0
        self._set_registered(blocks, 0)

    def forget(self) -> bool:
        """Let no block be found by what it holds. False, and nothing changed, while any is owned."""
        if any(pool.num_free < pool.capacity for pool in self.pools):
            return False
        for pool in self.pools:
            pool.forget()
        return True

    # --- inside ----------------------------------------------------------------------------------------------

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _first_read(self, window: int | None, position: int) -> int:
        """Index of the first block that a query at `position` or later reads."""
        return 0 if window is None else max(0, position - window + 1) // self.block_size

    def _match_length(self, hashes: Sequence[bytes]) -> int:
        length = len(hashes)
        for window, pool in zip(self._windows, self.pools, strict=True):
            if window is None:
                length = next((i for i in range(length) if not pool.has(hashes[i])), length)
        # A window needs only the blocks before its end. One that is missing is also inside the window of every
        # shorter prefix that reaches past it, so the next candidate ends there; full attention accepts any shorter.
        while (gap := self._last_gap(hashes, length)) is not None:
            length = gap
        return length

    def _last_gap(self, hashes: Sequence[bytes], length: int) -> int | None:
        for window, pool in zip(self._windows, self.pools, strict=True):
            if window is not None:
                for index in range(length - 1, self._first_read(window, length * self.block_size) - 1, -1):
                    if not pool.has(hashes[index]):
                        return index
        return None

    def _own(self, blocks: BlockTables, hit: PrefixHit, starts: Sequence[int], end: int) -> None:
        for pool, table, found, start in zip(self.pools, blocks.tables, hit.tables, starts, strict=True):
            for block in found:
                if block != NULL_BLOCK:
                    pool.share(block)
            table.extend(found)
            table.extend([NULL_BLOCK] * (start - hit.num_blocks))
            table.extend(pool.allocate(end - start))
        blocks.capacity = end * self.block_size
        self._set_registered(blocks, hit.num_blocks)

    def _set_registered(self, blocks: BlockTables, num_blocks: int) -> None:
        if self.enable_prefix_caching:
            blocks.num_registered = num_blocks
            blocks.next_full = (num_blocks + 1) * self.block_size

    def _pass_window(self, blocks: BlockTables, num_computed: int) -> None:
        """Give back what lies wholly outside the window of every position from `num_computed` on. Steps that are
        still in flight run before any step that could write to these blocks."""
        for window, pool, table in zip(self._windows, self.pools, blocks.tables, strict=True):
            if window is None:
                continue
            index = min(self._first_read(window, num_computed), len(table)) - 1
            while index >= 0 and table[index] != NULL_BLOCK:
                pool.release(table[index])
                table[index] = NULL_BLOCK
                index -= 1


def _num_unowned(pool: BlockPool, table: Sequence[int]) -> int:
    return sum(block != NULL_BLOCK and pool.num_owners(block) == 0 for block in table)
