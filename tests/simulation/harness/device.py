"""The simulated platform with an executor that checks every plan, moves KV for a connector, and has bad luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from core.cache import KVIndex
from core.platform import Executor, Health, MemoryPlan, Plan, Progress, Ticket
from core.types import KVGroupSpec, KVOp, StepOutput, StepPlan
from harness.kv import KVModel, Store
from harness.scenario import StepFault
from harness.trace import BadLuck, Violation
from platforms.sim.platform import SimPlatform
from platforms.sim.profile import load_profile

if TYPE_CHECKING:
    from harness.engine import EngineLife

#: A slow device with hardly any work to do: a step takes about 5 ms, whatever is in it.
PROFILE = msgspec.structs.replace(load_profile("h100"), host_step_s=0.004, host_sequence_s=0.0002, max_in_flight=2)


class Shelf(KVIndex):
    """A connector to a store that lives as long as the server."""

    def __init__(self, store: Store, num_groups: int) -> None:
        self._store = store
        self._groups = range(num_groups)
        self._offered: set[bytes] = set()

    def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
        count = 0
        for name in hashes[num_local:]:
            if not all((group, name) in self._store.blocks for group in self._groups):
                break
            count += 1
        return count

    def wants(self, block_hash: bytes) -> bool:
        new = block_hash not in self._offered
        self._offered.add(block_hash)
        return new


@dataclass
class Load:
    """Blocks on their way to one request."""

    operations: list[KVOp]
    due: float
    succeeds: bool


@dataclass
class Step:
    """A step in flight."""

    plan: StepPlan
    ticket: Ticket  # the simulated device's
    tokens: dict[int, int]  # by row: what it must sample
    begun: float


class CheckedPlatform(SimPlatform):
    """In virtual time, from the moment its engine is born."""

    def __init__(self, life: EngineLife) -> None:
        super().__init__(PROFILE, virtual=True)
        self.clock.sleep_until(life.born)
        self._life = life

    def create_executor(self, plan: Plan) -> Executor:
        return CheckedExecutor(super().create_executor(plan), self._life)


class CheckedExecutor(Executor):
    """The simulated device's executor, and around it the KV model and the faults of the scenario."""

    def __init__(self, device: Executor, life: EngineLife) -> None:
        self._device = device
        self._life = life
        self._clock = life.clock
        self._loads: dict[str, Load] = {}
        self.done = 0  # steps that were collected
        self.max_in_flight = life.scenario.shape.max_in_flight
        self.model: KVModel

    # --- getting ready ---

    def plan_memory(self) -> MemoryPlan:
        return self._device.plan_memory()

    def kv_groups(self) -> Sequence[KVGroupSpec]:
        return self._device.kv_groups()

    def load(self, progress: Progress) -> None:
        self._life.load_weights(progress)
        self._device.load(progress)

    def measure_kv_budget(self) -> int:
        return self._device.measure_kv_budget()

    def allocate_kv(self, num_blocks: int) -> None:
        self._device.allocate_kv(num_blocks)
        self.model = self._life.kv_model(self.kv_groups(), num_blocks)

    def warmup(self, progress: Progress) -> None:
        self._device.warmup(progress)

    # --- running ---

    def submit(self, plan: StepPlan) -> Ticket:
        life = self._life
        fault = life.next_step()
        life.check_plan(plan)
        life.trace("step %d: rows %s compute %s, %s", plan.step, plan.rows, plan.num_tokens, _describe(plan))
        if fault is not None and fault.kind == "submit":
            raise BadLuck(f"step {plan.step} could not be submitted")
        tokens = self.model.apply(plan, life.root_of)
        self._begin_loads(plan)
        moved = [op for op in plan.kv_ops if op.kind == "copy"]
        ticket = self._device.submit(plan if len(moved) == len(plan.kv_ops) else _with_ops(plan, moved))
        return Ticket(plan.step, (Step(plan, ticket, tokens, self._clock.now()), fault))

    def collect(self, ticket: Ticket) -> StepOutput:
        step, fault = ticket.result
        output = self._device.collect(step.ticket)
        self.done += 1
        if fault is not None:
            self._suffer(fault, step)
        self._check_tokens(step, output)
        self._end_loads(output, wait=not step.plan.rows and not step.plan.kv_ops)
        return output

    def health(self) -> Health:
        return self._device.health()

    def shutdown(self) -> None:
        self._device.shutdown()

    # --- bad luck ---

    def _suffer(self, fault: StepFault, step: Step) -> None:
        now = self._clock.now()
        if fault.kind == "slow":
            self._clock.advance(fault.seconds)
        elif fault.kind == "death":
            self._life.die_at(step.begun + (now - step.begun) * fault.fraction)
        elif fault.kind == "collect":
            raise BadLuck(f"step {step.plan.step} never came back")

    # --- what the device says ---

    def _check_tokens(self, step: Step, output: StepOutput) -> None:
        given = dict(zip(output.rows, output.token_ids, strict=True))
        if given != step.tokens:
            raise Violation("rows-sample-their-tokens", f"step {step.plan.step} gave {given} and not {step.tokens}")

    # --- a connector's loads ---

    def _begin_loads(self, plan: StepPlan) -> None:
        loads: dict[str, list[KVOp]] = {}
        for op in plan.kv_ops:
            if op.kind == "load":
                loads.setdefault(op.request_id, []).append(op)
        for request_id, operations in loads.items():
            self._loads[request_id] = Load(operations, *self._life.draw_load())

    def _end_loads(self, output: StepOutput, *, wait: bool) -> None:
        """Report the loads that are over; an empty step lasts until one is."""
        if wait and self._loads:
            self._clock.sleep_until(min(load.due for load in self._loads.values()))
        now = self._clock.now()
        for request_id in [name for name, load in self._loads.items() if load.due <= now]:
            load = self._loads.pop(request_id)
            for op in load.operations:
                self.model.finish_load(op, loaded=load.succeeds)
            (output.kv_loaded if load.succeeds else output.kv_failed).append(request_id)
            self._life.trace("kv of %s %s", request_id, "loaded" if load.succeeds else "lost")


def _with_ops(plan: StepPlan, operations: list[KVOp]) -> StepPlan:
    return msgspec.structs.replace(plan, kv_ops=operations)


def _describe(plan: StepPlan) -> str:
    parts = [f"admits {a.request_id} at {a.num_computed_tokens} as row {a.row}" for a in plan.admitted]
    parts += [f"releases row {row}" for row in plan.released]
    parts += [f"{op.kind} {op.src}->{op.dst} of group {op.group} for {op.request_id}" for op in plan.kv_ops]
    return "; ".join(parts) or "nothing else"
