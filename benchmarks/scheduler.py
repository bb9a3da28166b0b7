"""How long a turn of the scheduler takes: `python benchmarks/scheduler.py`.

A turn is `schedule` and `update`, with outputs that cost nothing; the pool has 50,000 blocks of 16 tokens. Goals:
150 µs with 32 running decode requests, 5 ms with 1,000. Each figure is CPU time of the thread, as a
turn waits for nothing and other programs shall not count: the median of 5 runs, with the fastest and the slowest.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable

from core.cache import CacheManager
from core.cache.pool import BlockPool
from core.config import SchedulerConfig
from core.scheduler import Scheduler
from core.types import EngineRequest, KVGroupSpec, SamplingParams, StepOutput, StepPlan

RUNS = 5
NUM_BLOCKS = 50_000
BLOCK_SIZE = 16
EOS = 2


def make_scheduler(max_num_seqs: int, budget: int) -> Scheduler:
    """A scheduler over an empty pool."""
    group = KVGroupSpec(layers=(0,), num_kv_heads=8, head_dim=128)
    cache = CacheManager([group], NUM_BLOCKS, BLOCK_SIZE, enable_prefix_caching=True, fingerprint="benchmark")
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_model_len=4096, max_queued_requests=0
    )
    return Scheduler(config, cache, eos_token_ids=[EOS])


def add_requests(scheduler: Scheduler, count: int, prompt_len: int, *, shared: int = 0) -> None:
    """`count` requests whose prompts have the first `shared` tokens in common."""
    params = SamplingParams(max_tokens=600)
    for number in range(count):
        own = [(number * 7919 + i) % 32_000 + 3 for i in range(prompt_len - shared)]
        prompt = list(range(3, 3 + shared)) + own
        scheduler.add(EngineRequest(request_id=str(number), prompt_token_ids=prompt, params=params))


class Turns:
    """Drives a scheduler, `lag` plans behind, and keeps each turn's time."""

    def __init__(self, scheduler: Scheduler, lag: int = 0) -> None:
        self.scheduler, self.lag = scheduler, lag
        self.pending: list[tuple[StepPlan, StepOutput]] = []
        self.remaining: dict[int, int] = {}  # row -> prompt tokens still to compute
        self.seconds: list[float] = []

    def run(self, count: int) -> None:
        """`count` turns: only `schedule` and `update` are timed."""
        for _ in range(count):
            start = time.thread_time()
            plan = self.scheduler.schedule()
            elapsed = time.thread_time() - start
            if plan is not None:
                self.pending.append((plan, self.answer(plan)))
            if len(self.pending) > self.lag:
                oldest = self.pending.pop(0)
                start = time.thread_time()
                self.scheduler.update(*oldest)
                elapsed += time.thread_time() - start
            self.seconds.append(elapsed)

    def answer(self, plan: StepPlan) -> StepOutput:
        """Token 5 for every row that has computed all it knows."""
        for new in plan.admitted:
            self.remaining[new.row] = len(new.token_ids) - new.num_computed_tokens
        rows = []
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            self.remaining[row] -= count
            if self.remaining[row] == 0:
                rows.append(row)
                self.remaining[row] = 1
        return StepOutput(plan.step, rows, [5] * len(rows))


def decode(num_seqs: int, lag: int) -> float:
    """Seconds of a turn in which every request decodes, 256 turns averaged: block boundaries included."""
    scheduler = make_scheduler(num_seqs, max(8192, num_seqs))
    add_requests(scheduler, num_seqs, 200)
    turns = Turns(scheduler, lag)
    turns.run(3 + num_seqs * 200 // 8192)
    turns.seconds.clear()
    turns.run(256)
    if scheduler.stats().running != num_seqs:
        raise RuntimeError(f"{scheduler.stats().running} of {num_seqs} requests decode")
    return statistics.fmean(turns.seconds)


def prefill() -> float:
    """Seconds of a turn that admits 16 prompts of 512 tokens, none of them known."""
    scheduler = make_scheduler(16, 8192)
    add_requests(scheduler, 16, 512)
    turns = Turns(scheduler)
    turns.run(1)
    return turns.seconds[0]


def prefix_hit() -> float:
    """Seconds of a turn that admits 15 prompts of 512 tokens, of which 496 are cached, beside one that decodes."""
    scheduler = make_scheduler(16, 512)
    add_requests(scheduler, 16, 512, shared=496)
    turns = Turns(scheduler)
    turns.run(2)
    if scheduler.stats().prefix_hits != 15 * 496:
        raise RuntimeError("the shared prefix was not found")
    return turns.seconds[1]


def allocate_and_release() -> float:
    """Seconds to take one block out of the pool and to give it back."""
    pool = BlockPool(NUM_BLOCKS)
    start = time.thread_time()
    for _ in range(4):
        for block in pool.allocate(NUM_BLOCKS - 1):
            pool.release(block)
    return (time.thread_time() - start) / (4 * (NUM_BLOCKS - 1))


def measure(name: str, run: Callable[[], float], goal: float | None = None) -> None:
    """Print the median of `RUNS` runs and their spread."""
    times = []
    for _ in range(RUNS):
        gc.collect()
        times.append(run() * 1e6)
    median = statistics.median(times)
    target = "" if goal is None else f"   goal {goal * 1e6:,.0f}: {'met' if median <= goal * 1e6 else 'MISSED'}"
    print(f"{name:<44}{median:>10,.1f} µs   {min(times):,.1f} … {max(times):,.1f}{target}")


def main() -> None:
    """Run everything."""
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.python_implementation()} {platform.python_version()}"
    )
    print(f"{NUM_BLOCKS:,} blocks of {BLOCK_SIZE} tokens; CPU time; median of {RUNS} runs, fastest … slowest")
    measure("decode, 32 running", lambda: decode(32, lag=0), 150e-6)
    measure("decode, 32 running, one step ahead", lambda: decode(32, lag=1), 150e-6)
    measure("decode, 1,000 running", lambda: decode(1000, lag=0), 5e-3)
    measure("decode, 1,000 running, one step ahead", lambda: decode(1000, lag=1), 5e-3)
    measure("prefill, 16 prompts of 512 tokens", prefill)
    measure("prefix hits, 15 prompts, 496 of 512 tokens", prefix_hit)
    measure("pool: allocate and release one block", allocate_and_release)


if __name__ == "__main__":
    main()
