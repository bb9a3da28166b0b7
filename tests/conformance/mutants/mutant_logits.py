"""Faults of kernels that choose tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from mutant_faults import fault
from mutant_platform import MutantPlatform

from core.logits import Choices, Doubles, Floats, Indices, Ints, ReferenceLogits

_Kernels = type[ReferenceLogits]


def chooser(name: str, what: str, caught_by: str) -> Callable[[_Kernels], _Kernels]:
    """Register kernels as a fault."""

    def register(kernels: _Kernels) -> _Kernels:
        @fault(name, what, caught_by)
        def breaks(platform: MutantPlatform) -> None:
            platform.choosing = kernels()

        return kernels

    return register


@chooser("draws-by-place", "a draw's noise goes by the place in the batch", "logits.choose")
class _ByPlace(ReferenceLogits):
    def choose(self, logits: Floats, choices: Choices) -> Ints:
        return super().choose(logits, replace(choices, choice=np.arange(len(choices.rows))))


@chooser("min-p-dropped", "min_p is left out", "logits.choose")
class _NoMinP(ReferenceLogits):
    def choose(self, logits: Floats, choices: Choices) -> Ints:
        return super().choose(logits, replace(choices, min_p=np.zeros(len(choices.rows))))


@chooser("choosing-scales-in-place", "the logits are divided where they lie", "logits.choose")
class _InPlace(ReferenceLogits):
    def choose(self, logits: Floats, choices: Choices) -> Ints:
        found = super().choose(logits, choices)
        logits /= 2
        return found


@chooser("rank-from-zero", "the most likely token has rank 0", "logits.logprobs")
class _RankFromZero(ReferenceLogits):
    def logprobs(self, logits: Floats, rows: Indices, token_ids: Ints, count: int) -> tuple[Doubles, Ints, Ints]:
        values, ids, ranks = super().logprobs(logits, rows, token_ids, count)
        return values, ids, ranks - 1
