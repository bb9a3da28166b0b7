"""Tokens that a request rules out: all but those it allows, and those that would complete a bad word."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.sampling.batch import SamplingBatch, bans_tokens
from core.types import SamplingParams


def ban(logits: Tensor, batch: SamplingBatch) -> None:
    """Leave of each sequence's logits [n, vocab], in place, what its request allows.

    A bad word is kept out as vLLM does it: its last token may not follow the others. Where that would leave nothing at
    all the word gives way.
    """
    if not any(map(bans_tokens, batch.params)):
        return
    for row, (params, _, output) in zip(logits, batch.histories(), strict=True):
        if params.allowed_token_ids is not None:
            allowed = torch.tensor(params.allowed_token_ids)
            kept = row[allowed]
            row.fill_(-torch.inf)
            row[allowed] = kept
        if params.bad_words_token_ids:
            _ban_words(row, params, output)


def _ban_words(row: Tensor, params: SamplingParams, output: npt.NDArray[np.int32]) -> None:
    longest = max(map(len, params.bad_words_token_ids)) - 1
    ending = tuple(output[len(output) - min(longest, len(output)) :].tolist())
    banned = [word[-1] for word in params.bad_words_token_ids if _ends_with(ending, word[:-1])]
    if not banned:
        return
    kept = row[banned]
    row[banned] = -torch.inf
    if row.max() == -torch.inf:
        row[banned] = kept


def _ends_with(ending: tuple[int, ...], beginning: tuple[int, ...]) -> bool:
    return not beginning or ending[-len(beginning) :] == beginning
