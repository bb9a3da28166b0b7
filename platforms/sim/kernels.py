"""The platform's kernels: each lets as much time pass as its op would take on the device, and computes nothing.

The executor does not call them, as it costs a whole step at once; they are what the contract asks of a platform, for
an executor of another kind and for timing a single op.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from core.clock import Clock
from core.errors import Unsupported
from core.platform import AttentionBackend, AttentionQuery, Kernel, KernelTable, KVLayout, Support
from platforms.sim.profile import Profile
from platforms.sim.work import WORK, Work

_BY_CONTEXT = "its time depends on contents that simulated memory does not hold; the executor counts it from step plans"


class RooflineKernels(KernelTable):
    """A kernel for each op of which the cost is known, but attention's."""

    def __init__(self, profile: Profile, clock: Clock) -> None:
        self._profile = profile
        self._clock = clock

    def supports(self, op: str) -> Support:
        """Whether its cost is known."""
        known = op in WORK and op != "kv_write"
        return Support(True) if known else Support(False, f"the simulation knows no cost of {op!r}")

    def get(self, op: str) -> Kernel:
        """A kernel that takes the op's time. Raises Unsupported."""
        support = self.supports(op)
        if not support:
            raise Unsupported(f"op {op}", support.reason)

        def kernel(*operands: Any, **attrs: Any) -> None:
            spend(WORK[op](*operands, **attrs), self._profile, self._clock)

        return kernel


def spend(work: Work, profile: Profile, clock: Clock) -> None:
    """Let the time of one op pass."""
    clock.sleep_until(clock.now() + profile.seconds(*work) + profile.launch_s)


class RooflineAttention(AttentionBackend):
    """Two planes of [num_kv_heads, block_size, head_dim] blocks, as far as sizes go."""

    name = "roofline"

    def __init__(self, profile: Profile, clock: Clock) -> None:
        self._profile = profile
        self._clock = clock

    def supports(self, query: AttentionQuery) -> Support:
        """Any shape in which the query heads divide over the KV heads."""
        if query.num_heads % query.num_kv_heads:
            return Support(False, f"{query.num_heads} heads cannot share {query.num_kv_heads} KV heads evenly")
        return Support(True)

    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        """Keys and values."""
        return KVLayout((query.num_kv_heads, query.block_size, query.head_dim), query.kv_dtype)

    def write_kv(self, key: Any, value: Any, cache: Sequence[Any], slot_mapping: Any) -> None:
        """Take the time of the write."""
        spend(WORK["kv_write"](key, value, cache, slot_mapping), self._profile, self._clock)

    def forward(self, *args: Any, **attrs: Any) -> None:
        """Raises Unsupported: how long it takes lies in `seq_lens`, whose contents nobody has."""
        raise Unsupported("attention as a single kernel", _BY_CONTEXT)

    def copy_blocks(self, cache: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> None:
        """Take the time of reading and writing each block."""
        for plane in cache:
            size = 2 * len(pairs) * math.prod(plane.shape[1:]) * plane.dtype.itemsize
            spend(Work(0, size, plane.dtype), self._profile, self._clock)
