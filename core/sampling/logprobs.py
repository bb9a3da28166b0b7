"""Log probabilities of chosen tokens and their alternatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from core.logits import LogitsKernels
from core.types import TokenLogprobs


def token_logprobs(
    kernels: LogitsKernels, logits: Tensor, rows: Sequence[int], token_ids: Sequence[int], alternatives: Sequence[int]
) -> list[TokenLogprobs]:
    """Of `token_ids[i]` at `rows[i]` of logits [n, vocab] float32, unmodified, beside its `alternatives[i]` likeliest."""
    count = max(alternatives, default=0)
    found = kernels.logprobs(logits.numpy(), np.array(rows, np.int32), np.array(token_ids, np.int64), count)
    return [
        TokenLogprobs(values[0], rank, list(zip(ids[1 : 1 + wanted], values[1 : 1 + wanted], strict=True)))
        for values, ids, rank, wanted in zip(*(each.tolist() for each in found), alternatives, strict=True)
    ]
