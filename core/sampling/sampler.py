"""Chooses each sequence's next token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.sampling.batch import SamplingBatch
from core.sampling.logprobs import token_logprobs
from core.sampling.penalties import adjust_logits
from core.sampling.random import uniforms
from core.types import SamplingParams, TokenLogprobs


class Sampler:
    """Greedy, or a draw from the distribution that temperature, top-k, top-p and min-p leave.

    A draw inverts the cumulative distribution at one counter-based number, so a sequence's token does not depend
    on its neighbours in the batch.
    """

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> tuple[npt.NDArray[np.int64], dict[int, TokenLogprobs]]:
        """logits float32 [n, vocab] -> token ids [n], and the logprobs of those that asked, by index in the batch."""
        adjusted = logits.clone()
        adjust_logits(adjusted, batch, self._eos_token_ids)
        tokens = greedy(adjusted)
        drawn = np.array([i for i, params in enumerate(batch.params) if not params.greedy], np.int64)
        if len(drawn):
            params = [batch.params[i] for i in drawn]
            seeds = np.array([p.seed for p in params], np.int64)
            numbers = uniforms(seeds, batch.choice[drawn], batch.num_tokens[drawn])
            tokens[drawn] = draw(adjusted[torch.from_numpy(drawn)], params, numbers)
        logprobs = {
            i: token_logprobs(logits[i], int(tokens[i]), params.logprobs)
            for i, params in enumerate(batch.params)
            if params.logprobs is not None
        }
        return tokens, logprobs


def greedy(logits: Tensor) -> npt.NDArray[np.int64]:
    """The index of each row's largest logit."""
    tokens: npt.NDArray[np.int64] = logits.argmax(-1).numpy()
    return tokens


def draw(logits: Tensor, params: Sequence[SamplingParams], numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """A token of each row of logits [n, vocab] by its number in [0, 1)."""
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32)
    probabilities = torch.softmax(logits / temperature[:, None], -1)
    keep_likely(probabilities, params)
    cumulative = probabilities.double().cumsum(-1)
    targets = torch.from_numpy(numbers)[:, None] * cumulative[:, -1:]
    # `right`: a token of probability zero is never the first to exceed the target.
    tokens = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    last = logits.shape[-1] - 1
    result: npt.NDArray[np.int64] = tokens.clamp_(max=last).numpy()
    return result


def keep_likely(probabilities: Tensor, params: Sequence[SamplingParams]) -> None:
    """Zero, in place, what min-p, top-k and then top-p leave out; tokens as likely as the last one kept stay."""
    for row, p in zip(probabilities, params, strict=True):
        if p.min_p > 0.0:
            row[row < p.min_p * row.max()] = 0.0
        if 0 < p.top_k < len(row):
            row[row < row.topk(p.top_k).values[-1]] = 0.0
        if p.top_p < 1.0:
            row[row < _nucleus_threshold(row, p.top_p)] = 0.0


def _nucleus_threshold(row: Tensor, top_p: float) -> Tensor:
    """The smallest probability in the nucleus (Holtzman et al. 2020): the fewest tokens that reach top_p together."""
    ordered = row.sort(descending=True).values
    before = ordered.double().cumsum(-1) - ordered.double()
    inside = before < top_p * row.double().sum()
    return ordered[int(inside.sum()) - 1]
