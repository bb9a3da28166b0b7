"""What the scheduler tells metrics and logs about itself."""

from __future__ import annotations

import msgspec


class SchedulerStats(msgspec.Struct, frozen=True):
    """Counts at one moment; the last five grow from start-up."""

    running: int
    waiting: int  # all that are neither running nor finished
    waiting_for_kv: int
    kv_usage: float  # fraction of the blocks that is owned, in the fullest KV group
    prefix_queries: int  # tokens of admitted requests
    prefix_hits: int  # of these, tokens whose KV was found
    external_queries: int  # tokens that a connector was asked for
    external_hits: int  # of these, tokens whose KV it has brought
    preemptions: int
