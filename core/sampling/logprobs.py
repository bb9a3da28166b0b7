"""Log probabilities of chosen tokens and their alternatives."""

from __future__ import annotations

import torch
from torch import Tensor

from core.types import TokenLogprobs


def token_logprobs(logits: Tensor, token: int, alternatives: int) -> TokenLogprobs:
    """Of one position: logits [vocab] float32, unmodified. `alternatives` most likely tokens are listed."""
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs[token]
    rank = int((logprobs > chosen).sum()) + 1
    values, indices = logprobs.topk(alternatives)
    return TokenLogprobs(float(chosen), rank, list(zip(indices.tolist(), values.tolist(), strict=True)))
