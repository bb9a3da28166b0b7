"""One step on one device: batch → forward → logits → sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core.logits import LogitsKernels
from core.platform import Bucket, Executable, MemoryBackend
from core.runner.batch import BatchState, StepInputs
from core.runner.blocks import BlockMover
from core.runner.inputs import InputBuffers
from core.sampling import Sampler
from core.sampling.sampler import greedy
from core.types import StepOutput, StepPlan

#: Makes the executable of a step shape; called once for each where buckets are declared, else once in all.
ExecutableFor = Callable[[Bucket], Executable]


class ModelRunner:
    """Owns the batch state and carries out step plans in order."""

    def __init__(
        self,
        *,
        batch: BatchState,
        sampler: Sampler,
        logits_kernels: LogitsKernels,
        executable_for: ExecutableFor,
        buckets: tuple[Bucket, ...],
        inputs: InputBuffers,
        logits: Any,
        memory: MemoryBackend,
        blocks: BlockMover,
    ) -> None:
        self.batch = batch
        self._sampler = sampler
        self._logits_kernels = logits_kernels
        self._executable_for = executable_for
        self._buckets = buckets
        self._inputs = inputs
        self._logits = logits
        self._logits_view = memory.host_view(logits)
        self._memory = memory
        self._blocks = blocks

    def execute(self, plan: StepPlan) -> StepOutput:
        """Carry out one plan; the sampled tokens are in the batch state when it returns."""
        self.batch.apply(plan)
        self._blocks.move(plan.kv_ops)
        output = self._compute(plan) if plan.rows else StepOutput(plan.step, [], [])
        output.kv_loaded, output.kv_failed = self._blocks.take_in(wait=not (plan.rows or plan.kv_ops))
        return output

    def _compute(self, plan: StepPlan) -> StepOutput:
        output = StepOutput(plan.step, [], [])
        for part in self.batch.parts(plan):
            inputs = self.batch.prepare(part, self._buckets)
            logits = self._forward(inputs.shape)
            if part.of_prompt:
                self.batch.add_prompt_logprobs(part, logits, self._logits_kernels)
            self.sample(output, inputs, logits)
        return output

    def idle(self, shape: Bucket) -> None:
        """Run the program where no sequence has a token: everything is padding, in the null block."""
        self._inputs.clear()
        self._forward(shape)

    def _forward(self, shape: Bucket) -> torch.Tensor:
        """Run the program on what the input buffers hold, and return the logits [num_seqs, vocab] on the host."""
        self._inputs.upload(shape)
        self._executable_for(shape).run(shape.num_tokens, shape.num_seqs)
        self._memory.synchronize()
        logits: torch.Tensor = self._logits_view
        if logits is None:
            logits = self._memory.download(self._logits)
        return logits[: shape.num_seqs]

    def sample(self, output: StepOutput, inputs: StepInputs, logits: torch.Tensor) -> None:
        """Sample where the last known token was computed; other rows are in the middle of their prompt."""
        rows, wanted = finished_rows(inputs, logits)
        if self.batch.argmax[rows].all():
            token_ids = greedy(wanted)
        else:
            token_ids, by_index = self._sampler.sample(wanted, self.batch.sampling_batch(rows))
            output.logprobs.update((int(rows[index]), found) for index, found in by_index.items())
        output.forced.update(self.batch.advance(inputs, rows, token_ids))
        output.rows += rows.tolist()
        output.token_ids += token_ids.tolist()
        output.failed.update(self.batch.failures(rows))
        output.prompt_logprobs.update(self.batch.take_prompt_logprobs(rows))


def finished_rows(inputs: StepInputs, results: torch.Tensor) -> tuple[npt.NDArray[np.int64], torch.Tensor]:
    """The batch's rows whose last known token was computed, and the program's results for them."""
    rows, wanted = inputs.rows[inputs.sampling], results[: len(inputs.rows)]
    if len(rows) < len(inputs.rows):
        wanted = wanted[torch.from_numpy(inputs.sampling)]
    return rows, wanted
