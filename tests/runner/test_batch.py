"""The runner's arrays follow the deltas of step plans."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from core.platform import Bucket
from core.runner.batch import BatchState, pick_bucket
from core.sampling.batch import is_plain_greedy
from core.structured.base import Matcher
from core.types import Admission, SamplingParams, StepPlan, StructuredOutputs

BLOCK = 4


class Written(Matcher):
    """Remembers what the answer has; fails with token 13."""

    def __init__(self, form: StructuredOutputs, token_ids: Sequence[int]) -> None:
        self.form, self.token_ids = form, list(token_ids)

    @property
    def failure(self) -> str | None:
        return "unlucky" if 13 in self.token_ids else None

    def forbidden(self) -> np.ndarray:
        return np.zeros(100, np.bool_)

    def advance(self, token_id: int) -> None:
        self.token_ids.append(token_id)


def make_state() -> BatchState:
    sizes = {"token_ids": 64, "positions": 64, "slot_mapping.0": 64, "query_start": 5, "seq_lens": 4, "logits_rows": 4}
    inputs = {name: np.full(size, -1, np.int32) for name, size in sizes.items()}
    inputs["block_table.0"] = np.full((4, 8), -1, np.int32)
    return BatchState(
        max_num_seqs=4,
        max_model_len=32,
        max_blocks=8,
        num_groups=1,
        block_size=BLOCK,
        is_argmax=is_plain_greedy,
        start_matcher=Written,
        inputs=inputs,
    )


def admission(row: int, tokens: list[int], blocks: list[int], computed: int = 0) -> Admission:
    return Admission(row, f"r{row}", tokens, len(tokens), computed, [blocks], SamplingParams(temperature=0.0), 0)


def plan(rows: list[int], counts: list[int], **parts: list) -> StepPlan:
    fields = {"released": [], "admitted": [], "blocks": [], "kv_ops": [], **parts}
    return StepPlan(0, fields["released"], fields["admitted"], rows, counts, fields["blocks"], fields["kv_ops"])


def test_prefill_then_decode() -> None:
    state = make_state()
    first = plan([2], [5], admitted=[admission(2, [10, 11, 12, 13, 14], [7, 3])])
    state.apply(first)
    inputs = state.prepare(next(state.parts(first)), ())
    assert inputs.shape == Bucket(5, 1)
    assert state.inputs["token_ids"][:5].tolist() == [10, 11, 12, 13, 14]
    assert state.inputs["positions"][:5].tolist() == [0, 1, 2, 3, 4]
    assert state.inputs["slot_mapping.0"][:5].tolist() == [28, 29, 30, 31, 12]
    assert state.inputs["query_start"][:2].tolist() == [0, 5]
    assert state.inputs["seq_lens"][:1].tolist() == [5]
    assert state.inputs["logits_rows"][:1].tolist() == [4]
    assert inputs.sampling.tolist() == [True]
    state.advance(inputs, inputs.rows, np.array([99]))

    second = plan([2], [1])
    state.apply(second)
    state.prepare(next(state.parts(second)), ())
    assert state.inputs["token_ids"][:1].tolist() == [99]
    assert state.inputs["positions"][:1].tolist() == [5]
    assert state.inputs["slot_mapping.0"][:1].tolist() == [13]
    assert state.inputs["seq_lens"][:1].tolist() == [6]


def test_a_chunk_in_the_middle_of_a_prompt_does_not_sample() -> None:
    state = make_state()
    step = plan([0, 1], [3, 2], admitted=[admission(0, [1, 2, 3, 4, 5], [1, 2]), admission(1, [6, 7], [4])])
    state.apply(step)
    inputs = state.prepare(next(state.parts(step)), ())
    assert inputs.sampling.tolist() == [False, True]
    state.advance(inputs, inputs.rows[inputs.sampling], np.array([42]))
    assert state.num_computed[[0, 1]].tolist() == [3, 2]
    assert state.num_tokens[[0, 1]].tolist() == [5, 3]


def test_blocks_arrive_later_and_rows_are_reused() -> None:
    state = make_state()
    state.apply(plan([], [], admitted=[admission(0, [1] * 6, [5, 6], computed=4)]))
    step = plan([0], [2], blocks=[(0, 0, 1, 2)])
    state.apply(step)
    state.prepare(next(state.parts(step)), ())
    assert state.inputs["slot_mapping.0"][:2].tolist() == [8, 9]
    again = plan([0], [2], released=[0], admitted=[admission(0, [8, 9], [3])])
    state.apply(again)
    state.prepare(next(state.parts(again)), ())
    assert state.inputs["token_ids"][:2].tolist() == [8, 9]
    assert state.inputs["slot_mapping.0"][:2].tolist() == [12, 13]


def test_padding_stays_in_the_null_block() -> None:
    state = make_state()
    step = plan([1], [3], admitted=[admission(1, [5, 6, 7], [2])])
    state.apply(step)
    inputs = state.prepare(next(state.parts(step)), (Bucket(4, 2), Bucket(8, 2), Bucket(64, 2)))
    assert inputs.shape == Bucket(4, 2)
    assert state.inputs["token_ids"][:4].tolist() == [5, 6, 7, 0]
    assert state.inputs["slot_mapping.0"][:4].tolist() == [8, 9, 10, 0]
    assert state.inputs["query_start"][:3].tolist() == [0, 3, 3], "no sequence owns the padding"
    assert state.inputs["seq_lens"][:2].tolist() == [3, 0]
    assert state.inputs["block_table.0"][:2].tolist() == [[2] + [0] * 7, [0] * 8]
    assert state.inputs["token_ids"][4] == -1, "nothing beyond the shape is written"


@pytest.mark.parametrize(
    ("tokens", "seqs", "expected"),
    [(1, 1, Bucket(1, 1)), (2, 1, Bucket(8, 1)), (2, 2, Bucket(8, 4)), (8, 4, Bucket(8, 4)), (9, 1, Bucket(32, 4))],
)
def test_the_smallest_bucket_that_fits(tokens: int, seqs: int, expected: Bucket) -> None:
    assert pick_bucket((Bucket(32, 4), Bucket(8, 4), Bucket(1, 1), Bucket(8, 1)), tokens, seqs, 9) == expected


def formed(row: int, tokens: list[int], num_prompt: int) -> Admission:
    params = SamplingParams(temperature=0.0, structured_outputs=StructuredOutputs(regex="a*"))
    plain = admission(row, tokens, [1, 2])
    return msgspec.structs.replace(plain, num_prompt_tokens=num_prompt, params=params)


def test_a_matcher_follows_its_row_from_admission_to_release() -> None:
    state = make_state()
    first = plan([0, 2], [2, 3], admitted=[admission(0, [6, 7], [4]), formed(2, [10, 11, 90], 2)])
    state.apply(first)
    inputs = state.prepare(next(state.parts(first)), ())
    followed = state.sampling_batch(inputs.rows).matchers
    assert list(followed) == [1] and followed[1].token_ids == [90], "what a resumed answer had is not its own"
    state.advance(inputs, inputs.rows, np.array([50, 91]))
    assert followed[1].token_ids == [90, 91] and not state.failures(inputs.rows)
    state.apply(plan([], [], released=[2]))
    assert not state.matchers and not state.sampling_batch(np.array([0])).matchers


def test_a_failure_is_of_its_row_alone() -> None:
    state = make_state()
    first = plan([1, 3], [1, 1], admitted=[formed(1, [10], 1), formed(3, [11], 1)])
    state.apply(first)
    inputs = state.prepare(next(state.parts(first)), ())
    state.advance(inputs, inputs.rows, np.array([12, 13]))
    assert state.failures(inputs.rows) == {3: "structured_outputs: unlucky"} and not state.failures(np.array([1]))
