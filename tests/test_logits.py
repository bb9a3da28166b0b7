"""What choosing a token means, held against the definitions, and the noise that a draw is made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.logits import Floats, ReferenceLogits, kept
from core.noise import gumbels, keys, uniforms
from tests.support.choices import choices

VOCAB = 50


def logits(seed: int = 0, n: int = 1) -> Floats:
    return (np.random.default_rng(seed).standard_normal((n, VOCAB)) * 2).astype(np.float32)


def key(seed: int, choice: int, position: int) -> np.uint64:
    return np.uint64(keys(*(np.array([part]) for part in (seed, choice, position)))[0])


class TestNoise:
    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
    def test_never_an_end_of_the_interval(self, key: int, counter: int) -> None:
        number = float(uniforms(np.uint64(key), np.array([counter]))[0])
        assert 0.0 < number < 1.0

    def test_the_last_number_is_below_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("core.noise._mix", lambda x: np.full_like(x, 2**64 - 1))
        assert uniforms(np.uint64(0), np.array([0]))[0] < 1.0

    @given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127), st.integers(0, 2**20))
    def test_a_function_of_the_key(self, seed: int, choice: int, position: int) -> None:
        tokens = np.array([3, 1, 2])
        noise = gumbels(key(seed, choice, position), tokens)
        assert noise.tolist() == gumbels(key(seed, choice, position), tokens).tolist()
        assert noise[1] == gumbels(key(seed, choice, position), np.array([1]))[0]

    def test_looks_random_over_each_part_of_the_key(self) -> None:
        one = np.array([17])
        series = {
            "seed": [gumbels(key(i, 0, 0), one)[0] for i in range(10_000)],
            "choice": [gumbels(key(5, i, 0), one)[0] for i in range(10_000)],
            "position": [gumbels(key(5, 0, i), one)[0] for i in range(10_000)],
            "token": gumbels(key(5, 0, 0), np.arange(10_000)),
        }
        for part, noise in series.items():
            uniform = np.exp(-np.exp(-np.asarray(noise)))
            counts = np.histogram(uniform, bins=20, range=(0, 1))[0]
            assert float(((counts - 500) ** 2 / 500).sum()) < 45, part  # 19 degrees of freedom: p = 0.0007
            assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.05, part


class TestFilters:
    @settings(max_examples=60)
    @given(st.integers(0, 10**6), st.integers(1, VOCAB), st.floats(0.05, 1.0), st.floats(0.0, 0.9))
    def test_what_is_left_is_what_the_definitions_say(self, seed: int, top_k: int, top_p: float, min_p: float) -> None:
        x = logits(seed)[0]
        gaps = x.astype(np.float64) - x.max()
        found = set(np.flatnonzero(kept(x, gaps, top_k, top_p, min_p)).tolist())
        whole = np.exp(gaps) / np.exp(gaps).sum()
        expected = [i for i in np.argsort(-x).tolist() if whole[i] >= min_p * whole.max()][:top_k]
        total, nucleus = sum(whole[i] for i in expected), []
        for token in expected:
            if sum(whole[i] for i in nucleus) < top_p * total - 1e-9:
                nucleus.append(token)
        assert set(nucleus) <= found
        assert len(found) <= len(nucleus) + 1  # a sum that is top_p to the last bit may fall either way

    def test_what_is_as_likely_as_the_last_one_stays(self) -> None:
        x = np.array([3, 1, 2, 2, 1, 2], np.float32)
        gaps = x.astype(np.float64) - 3
        assert np.flatnonzero(kept(x, gaps, 2, 1.0, 0.0)).tolist() == [0, 2, 3, 5]
        assert np.flatnonzero(kept(x, gaps, 0, 0.5, 0.0)).tolist() == [0, 2, 3, 5]
        assert np.flatnonzero(kept(x, gaps, 0, 1.0, math.exp(-1))).tolist() == [0, 2, 3, 5]


class TestDraw:
    @pytest.mark.parametrize("asked", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 12}])
    def test_frequencies_are_the_probabilities(self, asked: dict[str, float]) -> None:
        n, x = 20_000, logits(seed=3)
        drawn = ReferenceLogits().choose(x, choices(np.zeros(n, np.int32), seed=9, position=np.arange(n), **asked))
        gaps = (x[0].astype(np.float64) - x.max()) / asked["temperature"]
        expected = np.where(kept(x[0], gaps, int(asked.get("top_k", 0)), 1.0, 0.0), np.exp(gaps), 0.0)
        frequencies = np.bincount(drawn, minlength=VOCAB) / n
        assert np.abs(frequencies - expected / expected.sum()).max() < 0.012

    @given(st.integers(0, 10**6))
    def test_never_a_token_of_probability_zero(self, seed: int) -> None:
        x = logits(seed)
        x[0, ::2] = -np.inf
        assert ReferenceLogits().choose(x, choices([0], seed=seed))[0] % 2 == 1

    def test_rounding_of_the_logits_seldom_matters(self) -> None:
        """What float32 may change between a decode and a prefill of the same tokens moves hardly any draw."""
        changed = 0
        for position in range(300):
            generator = np.random.default_rng(position)
            x = (generator.standard_normal((1, 20_000)) * 2).astype(np.float32)
            nudged = x * (1 + 1e-6 * generator.standard_normal(x.shape).astype(np.float32))
            one, other = (
                ReferenceLogits().choose(each, choices([0], seed=1, position=position)) for each in (x, nudged)
            )
            changed += int(one[0] != other[0])
        assert changed <= 1

    def test_choices_of_one_seed_differ(self) -> None:
        flat = np.zeros((1, VOCAB), np.float32)
        drawn = ReferenceLogits().choose(flat, choices(np.zeros(16, np.int32), seed=5, choice=np.arange(16)))
        assert len(set(drawn.tolist())) > 8

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_has_no_probabilities_is_no_crash(self, bad: float) -> None:
        x = np.full((2, VOCAB), -np.inf, np.float32)
        x[1, [7, 9]] = bad
        assert ReferenceLogits().choose(x, choices([0, 1], top_p=0.5)).tolist() == [0, 7]
        values, ids, ranks = ReferenceLogits().logprobs(x, np.array([0, 1], np.int32), np.array([0, 7]), 2)
        assert np.isnan(values).all() and ids.tolist() == [[0, 0, 1], [7, 0, 1]] and ranks.tolist() == [1, 1]


class TestLogprobs:
    def test_the_softmax_its_order_and_the_rank(self) -> None:
        x = logits(n=2)
        values, ids, ranks = ReferenceLogits().logprobs(x, np.array([1, 0], np.int32), np.array([4, 5]), 3)
        for i, (row, token) in enumerate(((1, 4), (0, 5))):
            exact = x[row] - math.log(np.exp(x[row].astype(np.float64)).sum())
            assert ids[i].tolist() == [token, *np.argsort(-x[row])[:3].tolist()]
            assert values[i] == pytest.approx(exact[ids[i]], abs=1e-6)
            assert ranks[i] == 1 + (x[row] > x[row, token]).sum()

    def test_the_first_of_equals_comes_first(self) -> None:
        x = np.zeros((1, VOCAB), np.float32)
        _, ids, ranks = ReferenceLogits().logprobs(x, np.array([0], np.int32), np.array([9]), 3)
        assert ids.tolist() == [[9, 0, 1, 2]] and ranks.tolist() == [1]
