"""What choosing a token is made of: a sampler, and what may change the logits before it."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from core.sampling.batch import SamplingBatch
from core.types import SamplingParams, TokenLogprobs

TokenIds = npt.NDArray[np.int64]


class Sampler(abc.ABC):
    """Chooses each sequence's next token. A draw may depend on nothing but the sequence's own logits, parameters and
    tokens, and on (seed, choice, position): then it is the same in any batch and after any restart."""

    @abc.abstractmethod
    def sample(self, logits: Tensor, batch: SamplingBatch) -> tuple[TokenIds, dict[int, TokenLogprobs]]:
        """logits float32 [n, vocab], not to be changed -> token ids [n], and logprobs by index in the batch."""

    def is_argmax(self, params: SamplingParams) -> bool:
        """Whether the next token of such a request is always its largest logit; then `sample` may not be asked."""
        del params
        return False


class LogitsProcessor(abc.ABC):
    """Changes one sequence's logits before a token is chosen, ahead of bias and penalties."""

    @abc.abstractmethod
    def applies(self, params: SamplingParams) -> bool:
        """Whether it has anything to do for such a request; `params.extra_args` is what the client set for it."""

    @abc.abstractmethod
    def process(
        self, logits: Tensor, params: SamplingParams, prompt: npt.NDArray[Any], output: npt.NDArray[Any]
    ) -> None:
        """Change logits float32 [vocab] in place, knowing the request's prompt and output token ids so far."""
