"""The seam for KV that lives elsewhere: another server, host memory, a disk.

A connector only answers questions here. The bytes move in the executor, which reads the `load` and `save` entries
of `StepPlan.kv_ops` and reports the end of a request's loads in `StepOutput.kv_loaded` or `kv_failed`, in the output
of whichever step follows. While nothing else can run, the scheduler hands out an empty plan, so that there is a
step to report in; an executor answers that one when a load ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class KVConnector(ABC):
    """Says what blocks it has and which it wants. Called inside the scheduler's turn: it must not block."""

    @abstractmethod
    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        """How many blocks it can bring after the first `num_local`: `hashes[num_local : num_local + n]`.

        `hashes` are the chained hashes of the request's full blocks (`core.cache.prefix`), which servers with equal
        weights, KV dtype and layout agree on.
        """

    @abstractmethod
    def wants(self, block_hash: bytes) -> bool:
        """Whether a block that has just been filled shall be saved under its hash."""
