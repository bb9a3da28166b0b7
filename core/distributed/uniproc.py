"""The executor for one device: a worker in this process, on one thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any

from core.errors import PlatformError
from core.platform import Executor, Health, MemoryPlan, Plan, Platform, Progress, Ticket
from core.types import KVGroupSpec, KVTransferStats, SamplingParams, StepOutput, StepPlan


class UniprocExecutor(Executor):
    """Every call of the worker but `kv_transfers` and `prepared`, its construction included, is made on one thread, in the order here.

    So `submit` returns at once, steps never overlap, and what torch keeps by thread (grad mode, the current device)
    is set once. What a call raises is raised here: by `collect`, for a step.
    """

    def __init__(self, platform: Platform, plan: Plan) -> None:
        """Make the worker that `platform.worker` names, as `module:Class`."""
        self.max_in_flight = platform.max_in_flight
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")
        self._open: deque[Ticket] = deque()
        self._running = True
        try:
            self._worker = self._call(lambda: _worker_class(platform.worker)(platform, plan))
        except BaseException:
            self._running = False
            self._thread.shutdown()
            raise

    def _call(self, function: Callable[[], Any]) -> Any:
        if not self._running:
            raise PlatformError("the executor has been shut down; make a new one")
        return self._thread.submit(function).result()

    def plan_memory(self) -> MemoryPlan:
        """The memory plan, from the model's shapes alone."""
        plan: MemoryPlan = self._call(self._worker.plan_memory)
        return plan

    def kv_groups(self) -> Sequence[KVGroupSpec]:
        """The model's KV groups."""
        groups: Sequence[KVGroupSpec] = self._call(self._worker.kv_groups)
        return groups

    def load(self, progress: Progress) -> None:
        """Put the weights on the device; `progress` is called on the worker's thread."""
        self._call(lambda: self._worker.load(progress))

    def measure_kv_budget(self) -> int:
        """Bytes that the KV cache may take."""
        budget: int = self._call(self._worker.measure_kv_budget)
        return budget

    def allocate_kv(self, num_blocks: int) -> None:
        """Make the KV cache."""
        self._call(lambda: self._worker.allocate_kv(num_blocks))

    def warmup(self, progress: Progress) -> None:
        """Compile and touch; `progress` is called on the worker's thread."""
        self._call(lambda: self._worker.warmup(progress))

    def submit(self, plan: StepPlan) -> Ticket:
        """Queue a step. Raises RuntimeError beyond `max_in_flight`, PlatformError after `shutdown`."""
        if not self._running:
            raise PlatformError("the executor has been shut down; make a new one")
        if len(self._open) >= self.max_in_flight:
            raise RuntimeError(f"step {plan.step}: {len(self._open)} steps are in flight already; collect one first")
        ticket = Ticket(plan.step, self._thread.submit(self._worker.execute, plan))
        self._open.append(ticket)
        return ticket

    def collect(self, ticket: Ticket) -> StepOutput:
        """Wait for the oldest step. Raises what the step raised; RuntimeError on any other ticket."""
        if not self._open or self._open[0] is not ticket:
            raise RuntimeError(f"step {ticket.step} is not the oldest in flight")
        self._open.popleft()
        future: Future[StepOutput] = ticket.result
        return future.result()

    def prepared(self, params: SamplingParams) -> bool:
        """The worker's answer, at once and on the caller's thread."""
        prepared: bool = self._worker.prepared(params)
        return prepared

    def kv_transfers(self) -> KVTransferStats:
        """The worker's counts, at once and on the caller's thread: whoever looks at them waits for no step."""
        stats: KVTransferStats = self._worker.kv_transfers()
        return stats

    def health(self) -> Health:
        """The worker's own answer, after the steps in flight."""
        if not self._running:
            return Health(ok=False, reason="the executor has been shut down")
        health: Health = self._call(self._worker.health)
        return health

    def shutdown(self) -> None:
        """Let the steps in flight end, then free everything. May be called twice."""
        if not self._running:
            return
        try:
            self._call(self._worker.shutdown)
        finally:
            self._running = False
            self._thread.shutdown()


def _worker_class(path: str) -> Callable[[Platform, Plan], Any]:
    module, _, name = path.partition(":")
    found: Callable[[Platform, Plan], Any] = getattr(import_module(module), name)
    return found
