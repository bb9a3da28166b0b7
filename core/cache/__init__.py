"""The KV cache's bookkeeping: block pools, prefix hashes, block tables. Plain Python, no torch.

`CacheManager` is the door; `BlockTables` is what it keeps for one sequence; `KVIndex` is what the scheduler asks of a
cache that lives elsewhere.
"""

from __future__ import annotations

from core.cache.connector import KVIndex
from core.cache.manager import BlockTables, CacheManager, PrefixHit

__all__ = ["BlockTables", "CacheManager", "KVIndex", "PrefixHit"]
