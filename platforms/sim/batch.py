"""The executor's side of every running request, and the tokens it gets.

A token is a hash of (seed, choice, position): it depends on nothing else, so neither batching nor chunking nor
preemption changes it. A greedy request has its prompt's checksum for a seed: the same prompt gets the same answer. No
token ends a sequence by itself: simulated answers are as long as they are asked to be.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.types import Admission, StepPlan

IntArray = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class StepShape(NamedTuple):
    """counts [S] tokens computed for sequences then lengths [S] long, and the rows that sample with their tokens."""

    counts: IntArray
    lengths: IntArray
    rows: list[int]
    token_ids: list[int]


class SimBatch:
    """Lengths and sampling keys of up to `max_num_seqs` requests, by row, changed by the deltas of step plans."""

    def __init__(self, max_num_seqs: int, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._num_known = np.zeros(max_num_seqs, np.int64)
        self._num_computed = np.zeros(max_num_seqs, np.int64)
        self._keys = np.zeros(max_num_seqs, np.uint64)
        ends = sorted(token for token in set(eos_token_ids) if token < vocab_size)
        self._ordinary = np.setdiff1d(np.arange(vocab_size), ends) if len(ends) < vocab_size else np.arange(vocab_size)

    def execute(self, plan: StepPlan) -> StepShape:
        """Take in a plan that has rows, and say what it computes."""
        for admission in plan.admitted:
            self._admit(admission)
        rows = np.array(plan.rows, np.int64)
        counts = np.array(plan.num_tokens, np.int64)
        lengths = self._num_computed[rows] + counts
        self._num_computed[rows] = lengths
        sampling = rows[lengths == self._num_known[rows]]
        positions = self._num_known[sampling]
        self._num_known[sampling] = positions + 1
        tokens = self._tokens(self._keys[sampling], positions)
        return StepShape(counts, lengths, sampling.tolist(), tokens)

    def _admit(self, admission: Admission) -> None:
        row = admission.row
        self._num_known[row] = len(admission.token_ids)
        self._num_computed[row] = admission.num_computed_tokens
        self._keys[row] = _key(*_seed_and_choice(admission))

    def _tokens(self, keys: npt.NDArray[np.uint64], positions: IntArray) -> list[int]:
        mixed = _mix(keys + positions.astype(np.uint64) * _GOLDEN)
        tokens: list[int] = self._ordinary[(mixed % np.uint64(len(self._ordinary))).astype(np.int64)].tolist()
        return tokens


def _seed_and_choice(admission: Admission) -> tuple[int, int]:
    params = admission.params
    if params.greedy:
        prompt = array("i", admission.token_ids[: admission.num_prompt_tokens])
        return zlib.crc32(prompt.tobytes()), 0
    return params.seed or 0, admission.choice_index


def _key(seed: int, choice: int) -> np.uint64:
    state = np.array([seed % 2**64], np.uint64)
    return np.uint64(_mix(_mix(state) + np.uint64(choice))[0])


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = x + _GOLDEN  # wraps, as it should
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
