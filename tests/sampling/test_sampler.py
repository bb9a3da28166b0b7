"""Tokens are chosen as the parameters say, and independently of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.sampling.batch import SamplingBatch, is_plain_greedy
from core.sampling.penalties import adjust_logits
from core.sampling.sampler import DefaultSampler
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

    def test_logits_that_something_changes_are_copied_and_the_others_are_as_they_were(self) -> None:
        changing = {"logit_bias": {4: 100.0}}, {"min_tokens": 3}, {"allowed_token_ids": (4,)}
        params = [SamplingParams(seed=1, logprobs=0, **fields) for fields in ({}, *changing, {})]
        given, before = logits(5), logits(5)
        tokens, found = DefaultSampler([EOS]).sample(given, batch(params))
        assert torch.equal(given, before) and sorted(found) == [0, 1, 2, 3, 4]
        assert tokens[1] == tokens[3] == 4
        for i in (0, 4):
            alone = batch([params[i]] * 5)  # the same place, so the same choice index
            assert DefaultSampler([EOS]).sample(before[[i] * 5], alone)[0][i] == tokens[i]

    def test_nothing_left_to_choose_from_is_no_crash(self) -> None:
        nothing = torch.full((1, VOCAB), -torch.inf)
        assert DefaultSampler([EOS]).sample(nothing, batch([SamplingParams(seed=0, top_p=0.5)]))[0].tolist() == [0]

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
