"""What a request rules out is not chosen; what is left is as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import InvalidRequest
from core.sampling.bans import ban
from core.sampling.batch import SamplingBatch, is_plain_greedy
from core.sampling.sampler import DefaultSampler
from core.types import MAX_BAD_WORDS_LENGTH, SamplingParams

VOCAB = 20


def batch(*params: SamplingParams, output: tuple[int, ...] = ()) -> SamplingBatch:
    n, tokens = len(params), [7, *output]
    return SamplingBatch(
        params=params,
        tokens=np.array([tokens] * n, np.int32),
        num_tokens=np.full(n, len(tokens)),
        num_prompt=np.full(n, 1),
        choice=np.zeros(n, np.int64),
    )


def left(params: SamplingParams, *output: int) -> list[int]:
    """Tokens that remain; those that do are checked to be untouched."""
    logits = torch.randn(1, VOCAB)
    changed = logits.clone()
    ban(changed, batch(params, output=output))
    remaining = (changed[0] > -torch.inf).nonzero().flatten().tolist()
    assert changed[0, remaining].tolist() == logits[0, remaining].tolist()
    return remaining


def test_only_allowed_tokens_remain() -> None:
    assert left(SamplingParams(allowed_token_ids=(3, 9))) == [3, 9]


def test_a_word_may_not_be_completed() -> None:
    words = SamplingParams(bad_words_token_ids=((4,), (1, 2, 3), (2, 8)))
    every = set(range(VOCAB))
    assert left(words) == sorted(every - {4})
    assert left(words, 1) == sorted(every - {4})
    assert left(words, 1, 2) == sorted(every - {4, 3, 8})
    assert left(words, 2, 1) == sorted(every - {4})


def test_the_prompt_does_not_begin_a_word() -> None:
    assert left(SamplingParams(bad_words_token_ids=((7, 3),))) == list(range(VOCAB))


def test_a_word_gives_way_where_nothing_else_may_come() -> None:
    assert left(SamplingParams(allowed_token_ids=(3,), bad_words_token_ids=((3, 3),)), 3) == [3]


def test_the_sampler_obeys_and_leaves_neighbours_alone() -> None:
    greedy = {"temperature": 0.0, "seed": 0}
    params = SamplingParams(allowed_token_ids=(3, 9), **greedy), SamplingParams(**greedy)
    logits = torch.randn(2, VOCAB)
    tokens, _ = DefaultSampler([2]).sample(logits, batch(*params))
    assert tokens[0] == (3 if logits[0, 3] > logits[0, 9] else 9) and tokens[1] == logits[1].argmax()
    assert not is_plain_greedy(params[0]) and is_plain_greedy(params[1])


def test_bad_words_are_bounded_in_length() -> None:
    SamplingParams(bad_words=("x" * MAX_BAD_WORDS_LENGTH,))
    with pytest.raises(InvalidRequest, match=f"bad_words: at most {MAX_BAD_WORDS_LENGTH} characters in all"):
        SamplingParams(bad_words=("x" * MAX_BAD_WORDS_LENGTH, "y"))
