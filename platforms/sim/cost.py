"""How long a step takes: the recorded program, op by op, on a profile's roofline.

An op takes its roofline time and its launch; ops follow one another. Where devices share a layer, a linear layer whose
inputs are split is followed by an all-reduce of its output. What does not depend on the contexts is computed once for
each step shape; attention is a sum over the step's sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.errors import Unsupported
from core.platform import MemoryPlan
from core.program import OpCall, Shape, Value
from core.recording import RecordedModel
from core.types import DType, KVOp
from platforms.sim.profile import Profile
from platforms.sim.work import WORK, Work, attention

IntArray = npt.NDArray[np.int64]

#: Step shapes whose dense cost is kept.
_SHAPES = 65_536


class Shaped(NamedTuple):
    """An operand at the sizes of one step."""

    shape: tuple[int, ...]
    dtype: DType


class _Call(NamedTuple):
    """A call as far as its cost goes: many layers make the same one."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: dict[str, Any]
    reduced: bool  # an all-reduce of the output follows
    times: int


class CostModel:
    """Seconds of a step of `model`, recorded as one of `devices` devices has it. Raises Unsupported for unknown ops."""

    def __init__(self, model: RecordedModel, profile: Profile, devices: int) -> None:
        unknown = sorted(model.program.ops_used() - WORK.keys() - {"attention"})
        if unknown:
            raise Unsupported(
                f"op {', '.join(unknown)}", "the simulation knows no cost of it; add a formula to platforms/sim/work.py"
            )
        self._profile = profile
        self._devices = devices
        calls = _distinct(model)
        self._dense = [call for call in calls if call.op != "attention"]
        self._attention = [call for call in calls if call.op == "attention"]
        self._layers = [len(group.layers) for group in model.groups]
        self._dense_seconds = lru_cache(_SHAPES)(self._compute_dense)

    def step_seconds(self, counts: IntArray, lengths: IntArray) -> float:
        """Of a step that computes `counts` [S] tokens, at least one, of sequences then `lengths` [S] tokens long."""
        num_tokens, num_seqs = int(counts.sum()), len(counts)
        seconds = self._dense_seconds(num_tokens, num_seqs)
        for call in self._attention:
            work = self._attention_work(call, num_tokens, *_seen(counts, lengths, call.attrs["window"]))
            seconds += call.times * (self._profile.seconds(*work) + self._profile.launch_s)
        return seconds

    def copy_seconds(self, operations: Sequence[KVOp], plan: MemoryPlan) -> float:
        """Of block copies: each of a group's layers reads and writes its part of the block."""
        profile, layers = self._profile, sum(self._layers)
        seconds = 0.0
        for operation in operations:
            share = self._layers[operation.group] / layers
            seconds += profile.seconds(0, 2 * plan.kv_block_bytes * share, DType.FLOAT32)
            seconds += profile.launch_s * self._layers[operation.group]
        return seconds

    def _compute_dense(self, num_tokens: int, num_seqs: int) -> float:
        profile = self._profile
        seconds = profile.host_step_s + num_seqs * profile.host_sequence_s
        for call in self._dense:
            outputs = [_at(value, num_tokens, num_seqs) for value in call.outputs]
            inputs = [None if value is None else _at(value, num_tokens, num_seqs) for value in call.inputs]
            work: Work = WORK[call.op](*inputs, *outputs, **call.attrs)
            once = profile.seconds(*work) + profile.launch_s
            if call.reduced:
                size = outputs[0].shape[0] * outputs[0].shape[1] * outputs[0].dtype.itemsize
                once += profile.all_reduce_seconds(size, self._devices)
            seconds += call.times * once
        return seconds

    def _attention_work(self, call: _Call, num_tokens: int, pairs: int, context: int) -> Work:
        query, cache = call.inputs[:2]
        assert query is not None and cache is not None
        return attention(
            _at(query, num_tokens, 0),
            _at(call.outputs[0], num_tokens, 0),
            cache.dtype,
            head_dim=call.attrs["head_dim"],
            num_kv_heads=call.attrs["num_kv_heads"],
            pairs=pairs,
            context=context,
        )


def _at(value: Value, num_tokens: int, num_seqs: int) -> Shaped:
    return Shaped(value.resolve(num_tokens, num_seqs), value.dtype)


def _seen(counts: IntArray, lengths: IntArray, window: int | None) -> tuple[int, int]:
    """Pairs of a query row and a position that it sees, and positions that are read, over all sequences.

    The i-th of n rows of a context of L tokens sees L - n + i + 1 positions, or `window` of them if those are fewer.
    """
    before = lengths - counts
    if window is None:
        pairs = counts * before + counts * (counts + 1) // 2
        return int(pairs.sum()), int(lengths.sum())
    growing = np.clip(window - before, 0, counts)  # rows that the window does not cut
    pairs = growing * before + growing * (growing + 1) // 2 + (counts - growing) * window
    return int(pairs.sum()), int(np.minimum(lengths, counts + window - 1).sum())


def _distinct(model: RecordedModel) -> list[_Call]:
    """The program's calls, equal ones counted."""
    split = {p.value.owner.index for p in model.parameters if p.shard.dim == 1 and p.shard.world > 1}
    counts: Counter[Any] = Counter()
    first: dict[Any, OpCall] = {}
    for call in model.program.calls:
        reduced = call.op == "linear" and call.inputs[1] is not None and call.inputs[1].owner.index in split
        key = (call.op, *map(_outside, (*call.inputs, *call.outputs)), tuple(sorted(call.attrs.items())), reduced)
        counts[key] += 1
        first.setdefault(key, call)
    return [
        _Call(call.op, call.inputs, call.outputs, dict(call.attrs), key[-1], counts[key]) for key, call in first.items()
    ]


def _outside(value: Value | None) -> tuple[Shape, DType] | None:
    return None if value is None else (value.shape, value.dtype)
