"""Tokens are chosen as the parameters say, and independently of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.sampling.batch import SamplingBatch, is_plain_greedy
from core.sampling.penalties import adjust_logits
from core.sampling.random import gumbels, uniforms
from core.sampling.sampler import DefaultSampler, draw, likely
from core.types import SamplingParams

VOCAB = 50
EOS = 2


def batch(
    params: list[SamplingParams], prompt: list[int] | None = None, output: list[int] | None = None
) -> SamplingBatch:
    prompt, output = prompt or [5], output or []
    n = len(params)
    return SamplingBatch(
        params=params,
        tokens=np.array([prompt + output] * n, np.int32),
        num_tokens=np.full(n, len(prompt) + len(output)),
        num_prompt=np.full(n, len(prompt)),
        choice=np.arange(n),
    )


def logits(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


class TestRandom:
    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
    def test_never_an_end_of_the_interval(self, key: int, counter: int) -> None:
        number = float(uniforms(np.uint64(key), np.array([counter]))[0])
        assert 0.0 < number < 1.0

    @given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127), st.integers(0, 2**20))
    def test_a_function_of_the_key(self, seed: int, choice: int, position: int) -> None:
        tokens = np.array([3, 1, 2])
        noise = gumbels(seed, choice, position, tokens)
        assert noise.tolist() == gumbels(seed, choice, position, tokens).tolist()
        assert noise[1] == gumbels(seed, choice, position, np.array([1]))[0]

    def test_looks_random_over_each_part_of_the_key(self) -> None:
        one = np.array([17])
        series = {
            "seed": [gumbels(i, 0, 0, one)[0] for i in range(10_000)],
            "choice": [gumbels(5, i, 0, one)[0] for i in range(10_000)],
            "position": [gumbels(5, 0, i, one)[0] for i in range(10_000)],
            "token": gumbels(5, 0, 0, np.arange(10_000)),
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
        scaled = logits(seed=seed)[0]
        whole = torch.softmax(scaled, -1)
        found = set(likely(scaled, SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)).tolist())
        order = whole.argsort(descending=True)
        expected = [int(i) for i in order if whole[i] >= min_p * whole.max()][:top_k]
        total, nucleus = sum(float(whole[i]) for i in expected), []
        for token in expected:
            if sum(float(whole[i]) for i in nucleus) < top_p * total - 1e-6:
                nucleus.append(token)
        assert set(nucleus) <= found
        assert len(found) <= len(nucleus) + 1  # a sum that is top_p to the last bit may fall either way

    def test_tiny_top_p_leaves_the_best(self) -> None:
        scaled = logits()[0]
        assert likely(scaled, SamplingParams(top_p=1e-9)).tolist() == [int(scaled.argmax())]


class TestDraw:
    @pytest.mark.parametrize("params", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 12}])
    def test_frequencies_are_the_probabilities(self, params: dict[str, float]) -> None:
        n = 20_000
        one, settled = logits(seed=3)[0], SamplingParams(seed=9, **params)  # type: ignore[arg-type]
        drawn = [draw(one, settled, 0, position) for position in range(n)]
        scaled = one / settled.temperature
        expected = torch.zeros(VOCAB)
        kept = likely(scaled, settled)
        expected[kept] = torch.softmax(scaled[kept], -1)
        frequencies = np.bincount(drawn, minlength=VOCAB) / n
        assert np.abs(frequencies - expected.numpy()).max() < 0.012

    @given(st.integers(0, 10**6))
    def test_never_a_token_of_probability_zero(self, seed: int) -> None:
        one = logits(seed=seed)[0]
        one[::2] = float("-inf")
        assert draw(one, SamplingParams(seed=seed), 0, 0) % 2 == 1

    def test_rounding_of_the_logits_seldom_matters(self) -> None:
        """What float32 may change between a decode and a prefill of the same tokens moves hardly any draw."""
        changed = 0
        for position in range(300):
            generator = torch.Generator().manual_seed(position)
            one = torch.randn(20_000, generator=generator) * 2
            nudged = one * (1 + 1e-6 * torch.randn(20_000, generator=generator))
            params = SamplingParams(seed=1)
            changed += draw(one, params, 0, position) != draw(nudged, params, 0, position)
        assert changed <= 1


class TestSampler:
    def test_a_row_does_not_depend_on_its_neighbours(self) -> None:
        params = [
            SamplingParams(seed=1),
            SamplingParams(temperature=0.0),
            SamplingParams(seed=2, top_k=5, repetition_penalty=1.3),
            SamplingParams(seed=3, top_p=0.8, logprobs=2),
        ]
        many = logits(4)
        together, logprobs = DefaultSampler([EOS]).sample(many, batch(params))
        for i, own in enumerate(params):
            single = batch([own])
            alone = SamplingBatch(single.params, single.tokens, single.num_tokens, single.num_prompt, np.array([i]))
            token, found = DefaultSampler([EOS]).sample(many[i : i + 1], alone)
            assert token[0] == together[i]
            assert found.get(0) == logprobs.get(i)

    def test_logprobs_are_of_the_unmodified_distribution(self) -> None:
        one = logits()
        params = SamplingParams(seed=1, temperature=0.3, repetition_penalty=1.5, logprobs=3)
        (token,), found = DefaultSampler([EOS]).sample(one, batch([params]))
        exact = one[0].log_softmax(-1)
        assert found[0].logprob == pytest.approx(float(exact[token]))
        assert found[0].rank == int((exact > exact[token]).sum()) + 1
        assert [i for i, _ in found[0].top] == exact.argsort(descending=True)[:3].tolist()

    def test_choices_of_one_seed_differ(self) -> None:
        flat = torch.zeros(16, VOCAB)
        tokens, _ = DefaultSampler([EOS]).sample(flat, batch([SamplingParams(seed=5)] * 16))
        assert len(set(tokens.tolist())) > 8

    def test_min_tokens_holds_back_every_end(self) -> None:
        ends = torch.full((1, VOCAB), -5.0)
        ends[0, [EOS, 7]] = 10.0
        params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(7,))
        assert DefaultSampler([EOS]).sample(ends, batch([params], output=[4]))[0][0] not in (EOS, 7)
        assert DefaultSampler([EOS]).sample(ends, batch([params], output=[4, 4]))[0][0] in (EOS, 7)


class TestPenalties:
    def adjusted(self, params: SamplingParams) -> torch.Tensor:
        row = torch.linspace(-2, 2, VOCAB)[None].clone()
        adjust_logits(row, batch([params], prompt=[1, 45], output=[3, 3, 40]), [EOS])
        return row[0] - torch.linspace(-2, 2, VOCAB)

    def test_presence_and_frequency_count_the_output_only(self) -> None:
        change = self.adjusted(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25))
        assert change[3] == pytest.approx(-1.0)
        assert change[40] == pytest.approx(-0.75)
        assert change[[1, 45]].tolist() == [0.0, 0.0]
        assert int((change != 0).sum()) == 2

    def test_repetition_makes_seen_tokens_less_likely_whatever_their_sign(self) -> None:
        change = self.adjusted(SamplingParams(repetition_penalty=1.5))
        assert set((change < 0).nonzero()[:, 0].tolist()) == {1, 3, 40, 45}
        assert int((change != 0).sum()) == 4

    def test_bias(self) -> None:
        change = self.adjusted(SamplingParams(logit_bias={11: 3.0, 12: -100.0}))
        assert change[11] == pytest.approx(3.0)
        assert change[12] == pytest.approx(-100.0, rel=1e-5)


def test_only_what_needs_nothing_else_is_plain() -> None:
    assert is_plain_greedy(SamplingParams(temperature=0.0, max_tokens=5))
    for changed in (
        SamplingParams(),
        SamplingParams(temperature=0.0, logprobs=0),
        SamplingParams(temperature=0.0, min_tokens=1),
        SamplingParams(temperature=0.0, logit_bias={1: 1.0}),
        SamplingParams(temperature=0.0, repetition_penalty=1.1),
        SamplingParams(temperature=0.0, presence_penalty=0.1),
        SamplingParams(temperature=0.0, frequency_penalty=0.1),
    ):
        assert not is_plain_greedy(changed)
