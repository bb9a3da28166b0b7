"""The core's own way to choose each sequence's next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.sampling.bans import ban
from core.sampling.base import LogitsProcessor, Sampler
from core.sampling.batch import SamplingBatch, is_plain_greedy
from core.sampling.logprobs import token_logprobs
from core.sampling.penalties import adjust_logits
from core.sampling.random import gumbels
from core.structured.base import Matcher
from core.types import SamplingParams, TokenLogprobs


class DefaultSampler(Sampler):
    """Greedy, or a draw from the distribution that temperature, top-k, top-p and min-p leave.

    A draw depends on the logits and on (seed, choice, position), not on the neighbours in the batch.
    """

    def __init__(self, eos_token_ids: Sequence[int], processors: Sequence[LogitsProcessor] = ()) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._processors = tuple(processors)

    def is_argmax(self, params: SamplingParams) -> bool:
        """Greedy, and nothing changes the logits or asks for more."""
        return is_plain_greedy(params) and not any(processor.applies(params) for processor in self._processors)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> tuple[npt.NDArray[np.int64], dict[int, TokenLogprobs]]:
        """logits float32 [n, vocab] -> token ids [n], and the logprobs of those that asked, by index in the batch."""
        adjusted = logits.clone()
        if self._processors:
            self._process(adjusted, batch)
        forbid(adjusted, batch.matchers)
        ban(adjusted, batch)
        adjust_logits(adjusted, batch, self._eos_token_ids)
        tokens = greedy(adjusted)
        for i, params in enumerate(batch.params):
            if not params.greedy:
                tokens[i] = draw(adjusted[i], params, int(batch.choice[i]), int(batch.num_tokens[i]))
        logprobs = {
            i: token_logprobs(logits[i], int(tokens[i]), params.logprobs)
            for i, params in enumerate(batch.params)
            if params.logprobs is not None
        }
        return tokens, logprobs

    def _process(self, logits: Tensor, batch: SamplingBatch) -> None:
        for row, (params, prompt, output) in zip(logits, batch.histories(), strict=True):
            for processor in self._processors:
                if processor.applies(params):
                    processor.process(row, params, prompt, output)


def forbid(logits: Tensor, matchers: Mapping[int, Matcher]) -> None:
    """Leave of logits [n, vocab], in place, what the answers' forms allow. One that has failed allows everything."""
    for index, matcher in matchers.items():
        if matcher.failure is None:
            logits[index].numpy()[matcher.forbidden()] = -np.inf


def greedy(logits: Tensor) -> npt.NDArray[np.int64]:
    """The index of each row's largest logit, the first of equals. NumPy takes a tenth of torch's time for it."""
    tokens: npt.NDArray[np.int64] = logits.numpy().argmax(-1)
    return tokens


def draw(logits: Tensor, params: SamplingParams, choice: int, position: int) -> int:
    """A token of one row of logits [vocab], for the place `position` of choice `choice`."""
    assert params.seed is not None, "a request gets a seed at admission"
    scaled = logits / params.temperature
    if scaled.max() == -torch.inf:
        return 0  # a form, min_tokens and the like contradict each other: nothing is left to draw from
    candidates = likely(scaled, params)
    noise = gumbels(params.seed, choice, position, candidates.numpy())
    return int(candidates[int((scaled[candidates].double().numpy() + noise).argmax())])


def likely(scaled: Tensor, params: SamplingParams) -> Tensor:
    """Indices of the tokens that min-p, top-k and then top-p leave; those as likely as the last one left stay too."""
    every = torch.arange(len(scaled))
    if params.min_p == 0.0 and not 0 < params.top_k < len(scaled) and params.top_p == 1.0:
        return every
    row = torch.softmax(scaled, -1)
    if params.min_p > 0.0:
        row[row < params.min_p * row.max()] = 0.0
    if 0 < params.top_k < len(row):
        row[row < row.topk(params.top_k).values[-1]] = 0.0
    if params.top_p < 1.0:
        row[row < _nucleus_threshold(row, params.top_p)] = 0.0
    return every[row > 0.0]


def _nucleus_threshold(row: Tensor, top_p: float) -> Tensor:
    """The smallest probability in the nucleus (Holtzman et al. 2020): the fewest tokens that reach top_p together."""
    ordered = row.sort(descending=True).values
    before = ordered.double().cumsum(-1) - ordered.double()
    inside = before < top_p * row.double().sum()
    return ordered[int(inside.sum()) - 1]
