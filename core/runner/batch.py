"""The runner's side of every running request: numpy arrays by row, changed by the deltas of step plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from core.logits import LogitsKernels
from core.platform import Bucket
from core.runner.inputs import IntArray
from core.sampling.batch import SamplingBatch, bans_tokens
from core.sampling.logprobs import token_logprobs
from core.structured.base import Matcher
from core.types import (
    Admission,
    PoolingParams,
    SamplingParams,
    StepPlan,
    StructuredOutputs,
    TokenLogprobs,
)

#: A matcher for a form, behind the tokens that the answer has already.
StartMatcher = Callable[[StructuredOutputs, Sequence[int]], Matcher]


@dataclass(frozen=True)
class Part:
    """What one forward computes of a plan: sequence i is `num_tokens[i]` tokens of `rows[i]`, from `starts[i]` on.

    `of_prompt`: a prompt whose logits are all wanted, so that each of its tokens is a sequence.
    """

    rows: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    of_prompt: bool = False


@dataclass(frozen=True)
class StepInputs:
    """One forward as the input buffers hold it, padded to `shape`; `rows` and the others are of the real sequences.

    `lengths[i]` is what is computed of a sequence afterwards; `sampling[i]` tells whether its last token is its last
    known one, so that it samples.
    """

    shape: Bucket
    rows: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    sampling: npt.NDArray[np.bool_]


class BatchState:
    """Tokens, lengths and block tables of up to `max_num_seqs` requests, by row.

    `inputs` are the arrays that `prepare` writes, by the names of `core.layers.base.StepContext`.
    `argmax[row]` is what `is_argmax` says of the row's parameters (`core.sampling.Sampler.is_argmax`).
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        max_blocks: int,
        num_groups: int,
        block_size: int,
        is_argmax: Callable[[SamplingParams], bool],
        start_matcher: StartMatcher,
        inputs: Mapping[str, IntArray],
        position_offset: int = 0,
    ) -> None:
        self._block_size = block_size
        self._is_argmax = is_argmax
        self._start_matcher = start_matcher
        self.inputs = inputs
        self._position_offset = position_offset
        self._counting = np.arange(max_num_seqs + 1)
        # One token more than the longest context: the last one sampled is never computed.
        self.tokens: IntArray = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.num_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_computed = np.zeros(max_num_seqs, np.int64)
        self.num_prompt = np.zeros(max_num_seqs, np.int64)
        self.choice = np.zeros(max_num_seqs, np.int64)
        self.argmax = np.ones(max_num_seqs, np.bool_)
        self.params: list[SamplingParams | None] = [None] * max_num_seqs
        self.pooling: list[PoolingParams | None] = [None] * max_num_seqs
        self.segment_start = np.full(max_num_seqs, max_model_len, np.int64)
        self.matchers: dict[int, Matcher] = {}  # by row, of the answers that must have a form
        self.prompt_logprobs: dict[int, list[TokenLogprobs]] = {}  # by row, so far, where they are wanted
        self.block_tables: list[IntArray] = [np.zeros((max_num_seqs, max_blocks), np.int32) for _ in range(num_groups)]

    def apply(self, plan: StepPlan) -> None:
        """Take in a plan's released rows, admissions and new blocks, in that order."""
        for row in plan.released:
            self.params[row] = None
            self.matchers.pop(row, None)
            self.prompt_logprobs.pop(row, None)
        for admission in plan.admitted:
            self._admit(admission)
        for row, group, index, block in plan.blocks:
            self.block_tables[group][row, index] = block

    def _admit(self, admission: Admission) -> None:
        row, count = admission.row, len(admission.token_ids)
        self.tokens[row, :count] = admission.token_ids
        self.num_tokens[row] = count
        self.num_computed[row] = admission.num_computed_tokens
        self.num_prompt[row] = admission.num_prompt_tokens
        self.choice[row] = admission.choice_index
        self.params[row] = admission.params
        self.argmax[row] = self._is_argmax(admission.params)
        self._admit_pooling(row, admission.pooling)
        if admission.params.structured_outputs is not None:
            outputs = admission.token_ids[admission.num_prompt_tokens :]
            self.matchers[row] = self._start_matcher(admission.params.structured_outputs, outputs)
        if admission.params.prompt_logprobs is not None and count == admission.num_prompt_tokens:
            self.prompt_logprobs[row] = []
        for table, blocks in zip(self.block_tables, admission.block_ids, strict=True):
            table[row, : len(blocks)] = blocks

    def _admit_pooling(self, row: int, pooling: PoolingParams | None) -> None:
        self.pooling[row] = pooling
        start = None if pooling is None else pooling.segment_start
        self.segment_start[row] = self.tokens.shape[1] if start is None else start

    def parts(self, plan: StepPlan) -> Iterator[Part]:
        """The forwards that a plan with rows takes, in its order: one, unless all logits of a prompt are wanted."""
        rows, counts = np.array(plan.rows, np.int64), np.array(plan.num_tokens, np.int64)
        if not self.prompt_logprobs:
            yield Part(rows, counts, self.num_computed[rows])
            return
        wanted = [row in self.prompt_logprobs for row in plan.rows]
        for index, (row, count) in enumerate(zip(plan.rows, plan.num_tokens, strict=True)):
            if wanted[index]:
                yield Part(
                    np.full(count, row), np.ones(count, np.int64), self.num_computed[row] + np.arange(count), True
                )
            elif index == 0 or wanted[index - 1]:
                stop = next((i for i in range(index, len(wanted)) if wanted[i]), len(wanted))
                yield Part(rows[index:stop], counts[index:stop], self.num_computed[rows[index:stop]])

    def prepare(self, part: Part, buckets: tuple[Bucket, ...]) -> StepInputs:
        """Write a forward's inputs, padded to the smallest of `buckets` that holds it (none: not padded)."""
        rows, counts, computed = part.rows, part.num_tokens, part.starts
        lengths = computed + counts
        total = int(counts.sum())
        if total == len(rows):  # decoding: one token each
            starts, row_of_token, positions = self._counting[: total + 1], rows, computed
        else:
            starts = np.zeros(len(rows) + 1, np.int64)
            np.cumsum(counts, out=starts[1:])
            row_of_token = np.repeat(rows, counts)
            positions = np.arange(total) - np.repeat(starts[:-1] - computed, counts)
        shape = pick_bucket(buckets, total, len(rows), int(lengths.max())) if buckets else Bucket(total, len(rows))
        self._write_tokens(row_of_token, positions, shape.num_tokens)
        self._write_sequences(rows, starts, lengths, shape.num_seqs)
        return StepInputs(shape, rows, lengths, lengths == self.num_tokens[rows])

    def _write_tokens(self, rows: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], length: int) -> None:
        """The inputs that have one number for each token. Padding writes to slot 0, which lies in the null block."""
        _write(self.inputs["token_ids"], self.tokens[rows, positions], length)
        _write(self.inputs["positions"], positions + self._position_offset, length)
        if "segments" in self.inputs:
            _write(self.inputs["segments"], positions >= self.segment_start[rows], length)
        block, offset = np.divmod(positions, self._block_size)
        for group, table in enumerate(self.block_tables):
            _write(self.inputs[f"slot_mapping.{group}"], table[rows, block] * self._block_size + offset, length)

    def _write_sequences(
        self,
        rows: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        length: int,
    ) -> None:
        """The inputs that have one number, or one row, for each sequence."""
        _write(self.inputs["query_start"], starts, length + 1, int(starts[-1]))
        _write(self.inputs["seq_lens"], lengths, length)
        _write(self.inputs["logits_rows"], starts[1:] - 1, length)
        if "first_rows" in self.inputs:
            _write(self.inputs["first_rows"], starts[:-1], length)
        for group, table in enumerate(self.block_tables):
            _write(self.inputs[f"block_table.{group}"], table[rows], length)

    def sampling_batch(self, rows: npt.NDArray[np.int64]) -> SamplingBatch:
        """What the sampler needs of `rows`."""
        params = [self.params[row] for row in rows]
        return SamplingBatch(
            params=[p for p in params if p is not None],
            tokens=self.tokens[rows, : int(self.num_tokens[rows].max())],
            num_tokens=self.num_tokens[rows],
            num_prompt=self.num_prompt[rows],
            choice=self.choice[rows],
            matchers=self._followed(rows),
        )

    def advance(
        self, inputs: StepInputs, rows: npt.NDArray[np.int64], token_ids: npt.NDArray[Any]
    ) -> dict[int, list[int]]:
        """Account for a forward that ran: its tokens are computed, and `rows` each gained one token.

        Returns, by row, the tokens that the forms of answers force behind it, which they gained too. Where logprobs are
        asked for each token is computed and chosen by itself, and where the request rules tokens out.
        """
        self.num_computed[inputs.rows] = inputs.lengths  # of a row's several sequences the last one stays
        self.tokens[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1
        forced: dict[int, list[int]] = {}
        for index, matcher in self._followed(rows).items():
            matcher.advance(int(token_ids[index]))
            row = int(rows[index])
            params, known = self.params[row], int(self.num_tokens[row])
            assert params is not None, "it is being computed"
            if params.logprobs is None and not bans_tokens(params):
                tokens = matcher.take_forced(self.tokens.shape[1] - known)
                if tokens:
                    self.tokens[row, known : known + len(tokens)] = tokens
                    self.num_tokens[row] += len(tokens)
                    forced[row] = tokens
        return forced

    def add_prompt_logprobs(self, part: Part, logits: Tensor, kernels: LogitsKernels) -> None:
        """Keep what the logits [n, vocab] of a prompt's tokens say of the tokens behind them."""
        row = int(part.rows[0])
        params, found = self.params[row], self.prompt_logprobs[row]
        assert params is not None and params.prompt_logprobs is not None
        following = (part.starts + 1)[part.starts + 1 < self.num_prompt[row]]
        token_ids = self.tokens[row, following].tolist()
        alternatives = [params.prompt_logprobs] * len(token_ids)
        found += token_logprobs(kernels, logits, range(len(token_ids)), token_ids, alternatives)

    def take_prompt_logprobs(self, rows: npt.NDArray[np.int64]) -> dict[int, list[TokenLogprobs]]:
        """By row, those of `rows`, whose prompts are computed."""
        if not self.prompt_logprobs:
            return {}
        return {row: self.prompt_logprobs.pop(row) for row in rows.tolist() if row in self.prompt_logprobs}

    def failures(self, rows: npt.NDArray[np.int64]) -> dict[int, str]:
        """By row, why those of `rows` that cannot go on cannot."""
        found = {int(rows[index]): matcher.failure for index, matcher in self._followed(rows).items()}
        return {row: f"structured_outputs: {why}" for row, why in found.items() if why is not None}

    def _followed(self, rows: npt.NDArray[np.int64]) -> dict[int, Matcher]:
        """The matchers of `rows`, by index."""
        if not self.matchers:
            return {}
        return {index: self.matchers[row] for index, row in enumerate(rows.tolist()) if row in self.matchers}


def pick_bucket(buckets: tuple[Bucket, ...], num_tokens: int, num_seqs: int, context: int) -> Bucket:
    """The smallest bucket that holds a step whose longest sequence has `context` KV positions."""
    step = Bucket(num_tokens, num_seqs, context)
    fitting = [bucket for bucket in buckets if holds(bucket, step)]
    return min(fitting, key=lambda b: (b.num_tokens * b.num_seqs, b.context or math.inf, b))


def holds(bucket: Bucket, step: Bucket) -> bool:
    """Whether a step can be padded up to `bucket`."""
    return (
        bucket.num_tokens >= step.num_tokens
        and bucket.num_seqs >= step.num_seqs
        and (bucket.context >= step.context or not bucket.context)
    )


def _write(target: IntArray, values: npt.NDArray[Any], length: int, fill: int = 0) -> None:
    """`values` at the beginning of `target`, then `fill` up to `length` along the first axis."""
    count = len(values)
    target[:count] = values
    if count < length:
        target[count:length] = fill
