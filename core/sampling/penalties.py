"""What changes logits before a token is chosen: bias, penalties, tokens that may not come yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from core.sampling.batch import SamplingBatch, changes_logits
from core.types import SamplingParams

Row = npt.NDArray[np.float32]


def adjust_logits(logits: Tensor, batch: SamplingBatch, eos_token_ids: Sequence[int]) -> None:
    """Apply each sequence's adjustments to logits [n, vocab] on the host, in place.

    Repetition penalty: Keskar et al. 2019 (CTRL), over prompt and output. Presence and frequency: OpenAI's, over
    the output. Before `min_tokens` outputs neither EOS nor a stop token can be chosen. In NumPy, as torch's threads
    take longer to wake than these few numbers take.
    """
    for row, (params, prompt, output) in zip(logits.numpy(), batch.histories(), strict=True):
        if changes_logits(params):
            _change(row, params, prompt, output)
        if len(output) < params.min_tokens:
            row[[*eos_token_ids, *params.stop_token_ids]] = -np.inf


def _change(row: Row, params: SamplingParams, prompt: npt.NDArray[Any], output: npt.NDArray[Any]) -> None:
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate((prompt, output)))
        values, penalty = row[seen], np.float32(params.repetition_penalty)
        row[seen] = np.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        tokens, counts = np.unique(output, return_counts=True)
        row[tokens] -= (params.presence_penalty + params.frequency_penalty * counts).astype(np.float32)
    for token, bias in params.logit_bias.items():
        row[token] += np.float32(bias)
