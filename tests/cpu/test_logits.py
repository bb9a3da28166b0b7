"""Tokens are chosen as the reference chooses them, on every instruction-set tier of this processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.logits import Floats, ReferenceLogits
from platforms._shared import _native
from platforms._shared.native.logits import NativeLogits
from tests.support.choices import choices

SIZES = st.sampled_from([1, 2, 7, 63, 64, 65, 200, 1000, 4097])
#: What the logits are made of: spread out, all alike, few different ones, far apart.
KINDS = ("normal", "constant", "few", "far")


@pytest.fixture(autouse=True, params=_native.available_isas())
def tier(request: pytest.FixtureRequest) -> Iterator[None]:
    before, threads = _native.isa(), _native.num_threads()
    _native.set_isa(request.param)
    yield
    _native.set_isa(before)
    _native.set_num_threads(threads)


def logits(kind: str, rows: int, vocab: int, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    made = {
        "normal": lambda: generator.standard_normal((rows, vocab)) * 2.5,
        "constant": lambda: np.full((rows, vocab), 1.25),
        "few": lambda: generator.integers(-3, 3, (rows, vocab)) * np.log(2),
        "far": lambda: generator.standard_normal((rows, vocab)) * 1e4,
    }
    # Rows that lie apart, as those of an arena do.
    whole = np.full((rows, vocab + 5), np.nan, np.float32)
    whole[:, :vocab] = made[kind]()
    return whole[:, :vocab]


def check(x: Floats, **fields: Any) -> None:
    asked = choices(np.arange(len(x)), **fields)
    assert NativeLogits().choose(x, asked).tolist() == ReferenceLogits().choose(x, asked).tolist(), fields


ASKED = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-300, 1e-9, 0.05, 0.7, 1.0, 3.0, 100.0]),
        "top_k": st.sampled_from([-1, 0, 1, 2, 5, 64, 500, 2**31 - 1]),
        "top_p": st.sampled_from([1e-12, 0.1, 0.5, 0.9, 0.99, 1.0 - 1e-12, 1.0]),
        "min_p": st.sampled_from([0.0, 5e-324, 1e-6, 0.1, 0.5, 1.0]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "choice": st.integers(0, 127),
        "position": st.integers(0, 2**20),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), SIZES, st.integers(0, 2**32), ASKED)
def test_choices_are_the_references(kind: str, vocab: int, seed: int, asked: dict[str, Any]) -> None:
    check(logits(kind, 3, vocab, seed), **asked)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 2**32), ASKED, st.sampled_from([-np.inf, np.inf, np.nan]), st.floats(0.0, 1.0))
def test_whatever_is_not_finite(vocab: int, seed: int, asked: dict[str, Any], bad: float, part: float) -> None:
    x = logits("normal", 3, vocab, seed)
    x[np.random.default_rng(seed).random(x.shape) <= part] = bad
    check(x, **asked)


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.3}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.02}])
def test_many_draws_of_a_whole_vocabulary(asked: dict[str, Any]) -> None:
    x = logits("normal", 8, 20_011, 1)
    for position in range(5):
        check(x, position=position, seed=np.arange(8), **asked)


def test_each_row_has_its_own_numbers_and_depends_on_no_other() -> None:
    x = logits("normal", 6, 3000, 2)
    many: dict[str, Any] = {
        "temperature": np.array([0.0, 1.0, 0.7, 1.0, 2.0]), "top_k": np.array([0, 0, 9, 0, 0]),
        "top_p": np.array([1.0, 1.0, 1.0, 0.8, 1.0]), "min_p": np.array([0.0, 0.0, 0.0, 0.0, 0.1]), "seed": np.arange(5),
    }  # fmt: skip
    rows = np.array([5, 0, 3, 3, 1])
    together = NativeLogits().choose(x, choices(rows, **many))
    assert together.tolist() == ReferenceLogits().choose(x, choices(rows, **many)).tolist()
    for i, row in enumerate(rows):
        alone = choices([0], **{name: values[i] for name, values in many.items()})
        assert NativeLogits().choose(x[row : row + 1], alone)[0] == together[i]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), SIZES, st.integers(0, 2**32), st.integers(0, 20))
def test_logprobs_are_the_references(kind: str, vocab: int, seed: int, count: int) -> None:
    x = logits(kind, 3, vocab, seed)
    x[1, : vocab // 2] = -np.inf
    rows = np.array([2, 0, 1, 1], np.int32)
    tokens = np.random.default_rng(seed).integers(0, vocab, 4)
    found = NativeLogits().logprobs(x, rows, tokens, min(count, vocab))
    wanted = ReferenceLogits().logprobs(x, rows, tokens, min(count, vocab))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-12, atol=1e-9)
    assert found[1].tolist() == wanted[1].tolist() and found[2].tolist() == wanted[2].tolist()


def test_min_p_whose_bound_lies_at_zero() -> None:
    """There all floats up to 1e-16 have the same gap."""
    x = np.array([[1.0, 0.0, -1e-17, 1e-30, -2e-16, -1.0, -0.0]], np.float32)
    for position in range(40):
        check(x, min_p=float(np.exp(-1.0)), position=position)


def test_threads_change_nothing() -> None:
    x = logits("normal", 16, 5000, 3)
    found = []
    for threads in (1, 2, 3):
        _native.set_num_threads(threads)
        found.append(NativeLogits().choose(x, choices(np.arange(16), top_p=0.95)).tolist())
    assert found[0] == found[1] == found[2]


def test_what_cannot_be_is_refused() -> None:
    x = logits("normal", 2, 10, 0)
    with pytest.raises(ValueError, match="rows: has one that is not there"):
        NativeLogits().choose(x, choices([2]))
    with pytest.raises(ValueError, match="tokens: has one that is not of the vocabulary"):
        NativeLogits().logprobs(x, np.array([0], np.int32), np.array([10]), 1)
    with pytest.raises(ValueError, match="alternatives: must be in"):
        NativeLogits().logprobs(x, np.array([0], np.int32), np.array([1]), 11)
    with pytest.raises(ValueError, match="float32 rows are due"):
        NativeLogits().choose(x.T, choices([0]))
