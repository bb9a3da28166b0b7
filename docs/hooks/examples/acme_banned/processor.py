"""A request's `"vllm_xargs": {"banned_token_ids": [1, 2]}` keeps these tokens out of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from torch import Tensor

from core.sampling.base import LogitsProcessor
from core.types import SamplingParams


class Banned(LogitsProcessor):
    """Made once; what it needs of a request is in its parameters."""

    def __init__(self, options: Mapping[str, str]) -> None:
        pass  # the plugin has none

    def applies(self, params: SamplingParams) -> bool:
        """Requests without the list cost nothing."""
        return bool(params.extra_args.get("banned_token_ids"))

    def process(
        self, logits: Tensor, params: SamplingParams, prompt: npt.NDArray[Any], output: npt.NDArray[Any]
    ) -> None:
        """Minus infinity is never drawn."""
        logits[params.extra_args["banned_token_ids"]] = float("-inf")
