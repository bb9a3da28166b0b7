"""Epsilon sampling (Hewitt et al. 2022): no token is drawn that is less likely than epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acme_epsilon.plugin import EpsilonOptions
from torch import Tensor

from core.hookspecs import parse_own_options
from core.sampling.base import TokenIds
from core.sampling.batch import SamplingBatch
from core.sampling.sampler import DefaultSampler
from core.types import TokenLogprobs


class EpsilonSampler(DefaultSampler):
    """Before the core's own sampler, which honours every parameter that a request has."""

    def __init__(self, eos_token_ids: Sequence[int], options: Mapping[str, str]) -> None:
        super().__init__(eos_token_ids)
        self._epsilon = parse_own_options("acme_epsilon", options, EpsilonOptions, flag="--plugin-opt").epsilon

    def sample(self, logits: Tensor, batch: SamplingBatch) -> tuple[TokenIds, dict[int, TokenLogprobs]]:
        """The most likely token always stays; `logits` are the engine's and not changed."""
        probabilities = logits.softmax(-1)
        least = probabilities.amax(-1, keepdim=True).clamp(max=self._epsilon)
        tokens, _ = super().sample(logits.masked_fill(probabilities < least, float("-inf")), batch)
        return tokens, self.logprobs(logits, batch, tokens)  # of the distribution as the model gave it
