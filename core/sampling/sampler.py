"""The core's own way to choose each sequence's next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.logits import Choices, LogitsKernels, ReferenceLogits
from core.sampling.bans import ban
from core.sampling.base import LogitsProcessor, Sampler, TokenIds
from core.sampling.batch import SamplingBatch, bans_tokens, changes_logits, is_plain_greedy
from core.sampling.logprobs import token_logprobs
from core.sampling.penalties import adjust_logits
from core.structured.base import Matcher
from core.types import SamplingParams, TokenLogprobs


class DefaultSampler(Sampler):
    """Greedy, or a draw from the distribution that temperature, top-k, top-p and min-p leave.

    A draw depends on the logits and on (seed, choice, position), not on the neighbours in the batch.
    """

    def __init__(
        self,
        eos_token_ids: Sequence[int],
        processors: Sequence[LogitsProcessor] = (),
        kernels: LogitsKernels | None = None,
    ) -> None:
        """`kernels`: the platform's, or None for the core's own."""
        self._eos_token_ids = tuple(eos_token_ids)
        self._processors = tuple(processors)
        self._kernels = ReferenceLogits() if kernels is None else kernels

    def is_argmax(self, params: SamplingParams) -> bool:
        """Greedy, and nothing changes the logits or asks for more."""
        return is_plain_greedy(params) and not any(processor.applies(params) for processor in self._processors)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> tuple[TokenIds, dict[int, TokenLogprobs]]:
        """logits float32 [n, vocab] -> token ids [n], and the logprobs of those that asked, by index in the batch."""
        every = range(len(batch.params))
        changed = [i for i in every if self._changes(i, batch)]
        if not changed:
            tokens = self._choose(logits, every, batch)
        else:  # only their rows are copied
            tokens = np.empty(len(every), np.int64)
            plain = [i for i in every if i not in changed]
            tokens[plain] = self._choose(logits, plain, batch.select(plain))
            part, adjusted = batch.select(changed), torch.from_numpy(logits.numpy()[changed])
            self._adjust(adjusted, part)
            tokens[changed] = self._choose(adjusted, range(len(changed)), part)
        return tokens, self.logprobs(logits, batch, tokens)

    def logprobs(self, logits: Tensor, batch: SamplingBatch, tokens: TokenIds) -> dict[int, TokenLogprobs]:
        """Of the `tokens` [n] of those that asked, as the model's own logits [n, vocab] have them; by index."""
        wanted = {i: params.logprobs for i, params in enumerate(batch.params) if params.logprobs is not None}
        if not wanted:
            return {}
        rows = list(wanted)
        found = token_logprobs(self._kernels, logits, rows, tokens[rows].tolist(), list(wanted.values()))
        return dict(zip(rows, found, strict=True))

    def _changes(self, index: int, batch: SamplingBatch) -> bool:
        """Whether anything applies to a sequence's logits before a token is chosen."""
        params = batch.params[index]
        return (
            index in batch.matchers
            or bans_tokens(params)
            or changes_logits(params)
            or batch.num_tokens[index] - batch.num_prompt[index] < params.min_tokens
            or any(processor.applies(params) for processor in self._processors)
        )

    def _adjust(self, logits: Tensor, batch: SamplingBatch) -> None:
        if self._processors:
            self._process(logits, batch)
        forbid(logits, batch.matchers)
        ban(logits, batch)
        adjust_logits(logits, batch, self._eos_token_ids)

    def _process(self, logits: Tensor, batch: SamplingBatch) -> None:
        for row, (params, prompt, output) in zip(logits, batch.histories(), strict=True):
            for processor in self._processors:
                if processor.applies(params):
                    processor.process(row, params, prompt, output)

    def _choose(self, logits: Tensor, rows: Sequence[int], batch: SamplingBatch) -> TokenIds:
        """Of each sequence of `batch`, whose logits are those of `rows`."""
        return self._kernels.choose(logits.numpy(), choices(batch, rows))


def choices(batch: SamplingBatch, rows: Sequence[int]) -> Choices:
    """What the kernels need to know of a batch, whose logits are `rows`. A request got its seed at admission; a greedy
    one needs none."""
    params = batch.params
    return Choices(
        rows=np.array(rows, np.int32),
        temperature=np.array([p.temperature for p in params], np.float64),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=np.array([p.top_p for p in params], np.float64),
        min_p=np.array([p.min_p for p in params], np.float64),
        seed=np.array([0 if p.greedy else p.seed for p in params], np.int64),
        choice=batch.choice,
        position=batch.num_tokens,
    )


def forbid(logits: Tensor, matchers: Mapping[int, Matcher]) -> None:
    """Leave of logits [n, vocab], in place, what the answers' forms allow. One that has failed allows everything."""
    for index, matcher in matchers.items():
        if matcher.failure is None:
            logits[index].numpy()[matcher.forbidden()] = -np.inf


def greedy(logits: Tensor) -> npt.NDArray[np.int64]:
    """The index of each row's largest logit, the first of equals. NumPy takes a tenth of torch's time for it."""
    tokens: npt.NDArray[np.int64] = logits.numpy().argmax(-1)
    return tokens
