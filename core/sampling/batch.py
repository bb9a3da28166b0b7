"""What the sampler needs to know of the sequences it samples for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from core.structured.base import Matcher
from core.types import SamplingParams


@dataclass(frozen=True)
class SamplingBatch:
    """n sequences. `tokens[i, : num_tokens[i]]` are the known ones, the first `num_prompt[i]` of them the prompt.

    `matchers`, by index, are those of the answers that must have a form: what they forbid may not be chosen.
    """

    params: Sequence[SamplingParams]
    tokens: npt.NDArray[np.int32]
    num_tokens: npt.NDArray[np.int64]
    num_prompt: npt.NDArray[np.int64]
    choice: npt.NDArray[np.int64]
    matchers: Mapping[int, Matcher] = field(default_factory=dict)

    def select(self, indices: Sequence[int]) -> SamplingBatch:
        """The batch of some of the sequences, in the order of `indices`."""
        places = {index: place for place, index in enumerate(indices)}
        return SamplingBatch(
            params=[self.params[i] for i in indices],
            tokens=self.tokens[indices],
            num_tokens=self.num_tokens[indices],
            num_prompt=self.num_prompt[indices],
            choice=self.choice[indices],
            matchers={places[i]: matcher for i, matcher in self.matchers.items() if i in places},
        )

    def histories(self) -> Iterator[tuple[SamplingParams, npt.NDArray[Any], npt.NDArray[Any]]]:
        """(params, prompt tokens, output tokens) of each sequence."""
        for i, params in enumerate(self.params):
            start, stop = int(self.num_prompt[i]), int(self.num_tokens[i])
            yield params, self.tokens[i, :start], self.tokens[i, start:stop]


def is_plain_greedy(params: SamplingParams) -> bool:
    """Whether the next token is just the largest logit: nothing changes the logits and nothing asks for more."""
    asks = params.logprobs is not None or params.min_tokens > 0 or params.structured_outputs is not None
    return params.greedy and not asks and not changes_logits(params) and not bans_tokens(params)


def bans_tokens(params: SamplingParams) -> bool:
    """Whether the request rules tokens out by itself."""
    return params.allowed_token_ids is not None or bool(params.bad_words_token_ids)


def changes_logits(params: SamplingParams) -> bool:
    """Whether a bias or a penalty applies."""
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )
