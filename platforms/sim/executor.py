"""The simulated device: a step is its plan's delta, its cost, and deterministic tokens when its time is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from core.clock import Clock
from core.config import Config
from core.errors import PlatformError, Unsupported
from core.platform import Executor, Health, MemoryPlan, Progress, Ticket
from core.recording import RecordedModel
from core.types import DType, KVGroupSpec, StepOutput, StepPlan
from platforms.sim.batch import SimBatch
from platforms.sim.cost import CostModel
from platforms.sim.memory import SimMemory, SimTensor, plan_memory
from platforms.sim.profile import Profile


class SimExecutor(Executor):
    """Runs one step after the other on a device that is busy until its clock has passed their cost.

    Where the profile lets two steps be in flight, the engine's own work overlaps with the device's.
    """

    def __init__(self, config: Config, model: RecordedModel, profile: Profile, memory: SimMemory, clock: Clock) -> None:
        self.max_in_flight = profile.max_in_flight
        self._model = model
        self._memory = memory
        self._clock = clock
        self._cost = CostModel(model, profile, config.parallel.tensor)
        self._plan = plan_memory(model, config, profile)
        self._kv_limit = config.cache.memory_bytes or 0
        self._batch = SimBatch(config.scheduler.max_num_seqs, config.model.vocab_size, config.model.eos_token_ids)
        self._held: list[SimTensor] = []
        self._open: deque[Ticket] = deque()
        self._busy_until = 0.0
        self._running = True

    # --- getting ready ---

    def plan_memory(self) -> MemoryPlan:
        """One device's memory plan."""
        return self._plan

    def kv_groups(self) -> Sequence[KVGroupSpec]:
        """The model's KV groups."""
        return self._model.groups

    def load(self, progress: Progress) -> None:
        """Take the memory of weights, activations and inputs; no weight is read. Raises OutOfDeviceMemory."""
        for parameter in self._model.parameters:
            value = parameter.value
            self._held.append(self._memory.alloc(value.resolve(0, 0), value.dtype, "weights"))
        for usage, size in (("activations", self._plan.activations), ("inputs", self._plan.inputs)):
            self._held.append(self._memory.alloc((size,), DType.UINT8, usage))
        progress("loading", 1.0)

    def measure_kv_budget(self) -> int:
        """What the configuration grants, if the device still has it."""
        return min(self._kv_limit, self._memory.info().free)

    def allocate_kv(self, num_blocks: int) -> None:
        """Take the memory of the KV cache."""
        self._held.append(self._memory.alloc((num_blocks * self._plan.kv_block_bytes,), DType.UINT8, "kv"))

    def warmup(self, progress: Progress) -> None:
        """There is nothing to warm up."""
        progress("warming up", 1.0)

    # --- running ---

    def submit(self, plan: StepPlan) -> Ticket:
        """Begin a step behind those in flight. Raises RuntimeError beyond `max_in_flight`, PlatformError after `shutdown`."""
        if not self._running:
            raise PlatformError("the executor has been shut down; make a new one")
        if len(self._open) >= self.max_in_flight:
            raise RuntimeError(f"step {plan.step}: {len(self._open)} steps are in flight already; collect one first")
        output, seconds = self._execute(plan)
        self._busy_until = max(self._busy_until, self._clock.now()) + seconds
        ticket = Ticket(plan.step, (self._busy_until, output))
        self._open.append(ticket)
        return ticket

    def _execute(self, plan: StepPlan) -> tuple[StepOutput, float]:
        """What the step gives, and the seconds it takes."""
        seconds = 0.0
        if plan.kv_ops:
            unknown = {operation.kind for operation in plan.kv_ops} - {"copy"}
            if unknown:
                raise Unsupported(
                    f"KV operation {unknown.pop()!r}", "simulated KV has no contents to move; use no connector"
                )
            seconds += self._cost.copy_seconds(plan.kv_ops, self._plan)
        if not plan.rows:
            return StepOutput(plan.step, [], []), seconds
        step = self._batch.execute(plan)
        seconds += self._cost.step_seconds(step.counts, step.lengths)
        return StepOutput(plan.step, step.rows, step.token_ids), seconds

    def collect(self, ticket: Ticket) -> StepOutput:
        """Wait until the oldest step's time is over. Raises RuntimeError on any other ticket."""
        if not self._open or self._open[0] is not ticket:
            raise RuntimeError(f"step {ticket.step} is not the oldest in flight")
        self._open.popleft()
        end, output = ticket.result
        self._clock.sleep_until(end)
        result: StepOutput = output
        return result

    def health(self) -> Health:
        """Healthy until shut down."""
        return Health(ok=self._running, reason="" if self._running else "the executor has been shut down")

    def shutdown(self) -> None:
        """Give all memory back. May be called twice."""
        self._running = False
        self._open.clear()
        held, self._held = self._held, []
        for handle in held:
            self._memory.free(handle)
