"""Faults of executors, and of samplers that run inside of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from mutant_faults import fault
from mutant_platform import MutantPlatform

from core.distributed.uniproc import UniprocExecutor
from core.platform import Health, MemoryPlan, Plan, Ticket
from core.types import Admission, DType, StepOutput, StepPlan


class _Executor(UniprocExecutor):
    """The contract's own, on a platform that a fault can get at."""

    def __init__(self, platform: MutantPlatform, plan: Plan) -> None:
        super().__init__(platform, plan)
        self.platform = platform


def wrong(name: str, what: str, caught_by: str) -> Callable[[type[_Executor]], type[_Executor]]:
    """Register an executor that is wrong."""

    def register(executor: type[_Executor]) -> type[_Executor]:
        @fault(name, what, caught_by)
        def breaks(platform: MutantPlatform) -> None:
            platform.create_executor = lambda plan: executor(platform, plan)  # type: ignore[method-assign]

        return executor

    return register


# --- steps ---------------------------------------------------------------------------------------------------


@wrong("tickets-swapped", "two steps are in flight, and collect() gives the newest first", "executor.order")
class TicketsSwapped(_Executor):
    def __init__(self, platform: MutantPlatform, plan: Plan) -> None:
        super().__init__(platform, plan)
        self.max_in_flight = 2

    def collect(self, ticket: Ticket) -> StepOutput:
        newest = self._open.pop()
        self._open.clear()
        output: StepOutput = newest.result.result()
        return output


@wrong("step-leaks", "each step keeps some kilobytes of the host's memory", "executor.flat_memory")
class StepLeaks(_Executor):
    def __init__(self, platform: MutantPlatform, plan: Plan) -> None:
        super().__init__(platform, plan)
        self._kept: list[bytearray] = []

    def submit(self, plan: StepPlan) -> Ticket:
        self._kept.append(bytearray(b"x" * 6000))
        return super().submit(plan)


@wrong("abort-lost", "a released row goes on giving tokens", "executor.release")
class AbortLost(_Executor):
    def __init__(self, platform: MutantPlatform, plan: Plan) -> None:
        super().__init__(platform, plan)
        self._gone: set[int] = set()

    def submit(self, plan: StepPlan) -> Ticket:
        self._gone |= set(plan.released)
        return super().submit(plan)

    def collect(self, ticket: Ticket) -> StepOutput:
        output = super().collect(ticket)
        lost = sorted(self._gone - set(output.rows))
        return StepOutput(output.step, [*output.rows, *lost], [*output.token_ids, *[0] * len(lost)])


@wrong("row-not-reset", "a row that is admitted again keeps the blocks of the request before", "executor.release")
class RowNotReset(_Executor):
    def __init__(self, platform: MutantPlatform, plan: Plan) -> None:
        super().__init__(platform, plan)
        self._blocks: dict[int, list[list[int]]] = {}

    def submit(self, plan: StepPlan) -> Ticket:
        kept = [
            msgspec.structs.replace(admission, block_ids=self._blocks.setdefault(admission.row, admission.block_ids))
            for admission in plan.admitted
        ]
        return super().submit(_with(plan, admitted=kept))


@wrong("new-blocks-ignored", "blocks that a running request is given are ignored", "executor.steps")
class NewBlocksIgnored(_Executor):
    def submit(self, plan: StepPlan) -> Ticket:
        return super().submit(_with(plan, blocks=[]))


@wrong("copies-dropped", "copies of blocks in a plan are not made", "executor.copies")
class CopiesDropped(_Executor):
    def submit(self, plan: StepPlan) -> Ticket:
        return super().submit(_with(plan, kv_ops=[]))


@wrong("prefix-misplaced", "blocks that were found in the cache are taken in another order", "invariance.prefix")
class PrefixMisplaced(_Executor):
    def submit(self, plan: StepPlan) -> Ticket:
        turned = [
            msgspec.structs.replace(each, block_ids=[[*table[1:2], *table[:1], *table[2:]] for table in each.block_ids])
            if each.num_computed_tokens >= 32
            else each
            for each in plan.admitted
        ]
        return super().submit(_with(plan, admitted=turned))


@wrong("preempted-forgets", "a request that comes back has forgotten its last token but one", "invariance.preemption")
class PreemptedForgets(_Executor):
    def submit(self, plan: StepPlan) -> Ticket:
        back = [
            msgspec.structs.replace(each, token_ids=[*each.token_ids[:-2], each.token_ids[-1], each.token_ids[-1]])
            if len(each.token_ids) > each.num_prompt_tokens + 1
            else each
            for each in plan.admitted
        ]
        return super().submit(_with(plan, admitted=back))


def _with(plan: StepPlan, **changes: Any) -> StepPlan:
    return msgspec.structs.replace(plan, **changes)


# --- its life ------------------------------------------------------------------------------------------------


@wrong("hangs-at-shutdown", "shutdown() does not end", "executor.shutdown")
class HangsAtShutdown(_Executor):
    def shutdown(self) -> None:
        running, _ = self._running, super().shutdown()
        if running:
            time.sleep(20)


@wrong("second-shutdown-raises", "a second shutdown() raises", "executor.shutdown")
class SecondShutdownRaises(_Executor):
    def shutdown(self) -> None:
        if not self._running:
            raise RuntimeError("the executor has been shut down")
        super().shutdown()


@wrong("keeps-memory", "shutdown() leaves device memory allocated", "executor.shutdown")
class KeepsMemory(_Executor):
    def shutdown(self) -> None:
        if self._running:
            self.platform.memory().alloc((4096,), DType.UINT8, "activations")
        super().shutdown()


@wrong("leaks-thread", "every executor leaves a thread", "executor.leaves_nothing")
class LeaksThread(_Executor):
    def __init__(self, platform: MutantPlatform, plan: Plan) -> None:
        super().__init__(platform, plan)
        threading.Thread(target=threading.Event().wait, daemon=True).start()


@wrong("never-well", "health() is not ok", "executor.health")
class NeverWell(_Executor):
    def health(self) -> Health:
        return Health(ok=False, reason="the temperature sensor does not answer")


@wrong("plan-too-small", "plan_memory() counts half of the weights", "executor.memory_plan")
class PlanTooSmall(_Executor):
    def plan_memory(self) -> MemoryPlan:
        plan = super().plan_memory()
        return replace(plan, weights=plan.weights // 2)


# --- sampling that is declared and ignored -------------------------------------------------------------------


def _ignored(feature: str, neutral: Any) -> None:
    """Register an executor whose sampler knows nothing of `feature`."""

    class Ignoring(_Executor):
        def submit(self, plan: StepPlan) -> Ticket:
            field = _FIELDS.get(feature, feature)
            return super().submit(_with(plan, admitted=_without(plan.admitted, field, neutral)))

    wrong(f"ignores-{feature}", f"{feature} is declared and ignored", f"sampling.{feature}")(Ignoring)


def _without(admitted: Sequence[Admission], feature: str, neutral: Any) -> list[Admission]:
    return [
        msgspec.structs.replace(each, params=msgspec.structs.replace(each.params, **{feature: neutral}))
        for each in admitted
    ]


_NEUTRAL = {
    "temperature": 0.0, "seed": 5, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "repetition_penalty": 1.0, "logit_bias": {}, "allowed_token_ids": None, "bad_words": (),
    "min_tokens": 0, "logprobs": None, "prompt_logprobs": None, "structured_outputs": None,
}  # fmt: skip
#: Where a feature is told by another field than its own.
_FIELDS = {"bad_words": "bad_words_token_ids"}

for _feature, _value in _NEUTRAL.items():
    _ignored(_feature, _value)


@wrong("logprobs-after-temperature", "logprobs are of another distribution than the model's", "sampling.logprobs")
class LogprobsOfAnother(_Executor):
    def collect(self, ticket: Ticket) -> StepOutput:
        output = super().collect(ticket)
        for row, entry in output.logprobs.items():
            output.logprobs[row] = msgspec.structs.replace(entry, logprob=entry.logprob / 2)
        return output
