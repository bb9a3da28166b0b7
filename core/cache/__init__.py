"""The KV cache's bookkeeping: block pools, prefix hashes, block tables. Plain Python, no torch.

`CacheManager` is the door; `BlockTables` is what it keeps for one sequence; `KVConnector` is the seam for caches
that live elsewhere.
"""

from __future__ import annotations

from core.cache.connector import KVConnector
from core.cache.manager import BlockTables, CacheManager, PrefixHit

__all__ = ["BlockTables", "CacheManager", "KVConnector", "PrefixHit"]
