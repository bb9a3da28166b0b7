"""Steps that were planned and whose outputs are not here yet."""

from __future__ import annotations

from core.errors import PlatformError
from core.scheduler.request import Request
from core.types import StepOutput, StepPlan


class InFlight:
    """Whom each of them samples for, by row; the oldest step first."""

    def __init__(self) -> None:
        self._steps: dict[int, dict[int, Request]] = {}

    def __bool__(self) -> bool:
        return bool(self._steps)

    @property
    def steps(self) -> list[int]:
        """Their numbers."""
        return list(self._steps)

    def add(self, step: int, sampled: dict[int, Request]) -> None:
        """A step was planned."""
        self._steps[step] = sampled

    def rows(self, step: int) -> list[int]:
        """The rows that a step samples, as far as is known yet."""
        return list(self._steps[step])

    def take(self, plan: StepPlan, output: StepOutput) -> dict[int, Request]:
        """The step ends: whom it has sampled for. Raises PlatformError for an output that does not answer the plan."""
        oldest = next(iter(self._steps), None)
        if not plan.step == output.step == oldest:
            raise PlatformError(f"step {oldest} comes next, got output {output.step} for plan {plan.step}")
        sampled = self._steps.pop(plan.step)
        if not len(output.rows) == len(output.token_ids) == len(sampled) or sampled.keys() != set(output.rows):
            raise PlatformError(
                f"step {plan.step} samples rows {sorted(sampled)}, the output has {sorted(output.rows)}"
            )
        for row, forced in output.forced.items():
            self._withdraw(sampled[row], row, len(forced))
        return sampled

    def _withdraw(self, request: Request, row: int, count: int) -> None:
        """The next `count` tokens of a request are known: steps that were to sample them compute what is before them,
        and sample nothing."""
        for sampled in self._steps.values():
            if count and sampled.get(row) is request:
                del sampled[row]
                count -= 1
