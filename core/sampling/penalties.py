"""What changes logits before a token is chosen: bias, penalties, tokens that may not come yet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.sampling.batch import SamplingBatch, changes_logits


def adjust_logits(logits: Tensor, batch: SamplingBatch, eos_token_ids: Sequence[int]) -> None:
    """Apply each sequence's adjustments to logits [n, vocab] in place.

    Repetition penalty: Keskar et al. 2019 (CTRL), over prompt and output. Presence and frequency: OpenAI's, over
    the output. Before `min_tokens` outputs neither EOS nor a stop token can be chosen.
    """
    for row, (params, prompt, output) in zip(logits, batch.histories(), strict=True):
        if changes_logits(params):
            if params.repetition_penalty != 1.0:
                seen = torch.from_numpy(prompt).long(), torch.from_numpy(output).long()
                _repetition(row, torch.cat(seen).unique(), params.repetition_penalty)
            if params.presence_penalty or params.frequency_penalty:
                tokens, counts = torch.from_numpy(output).long().unique(return_counts=True)
                row[tokens] -= params.presence_penalty + params.frequency_penalty * counts
            for token, bias in params.logit_bias.items():
                row[token] += bias
        if len(output) < params.min_tokens:
            row[[*eos_token_ids, *params.stop_token_ids]] = float("-inf")


def _repetition(row: Tensor, seen: Tensor, penalty: float) -> None:
    values = row[seen]
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)
