"""Random numbers that depend on nothing but their key.

A request that is preempted, resumed, batched otherwise or moved to another engine draws the same numbers, because
a draw is a hash of (seed, choice index, position) and no state is kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def gumbels(key: np.uint64, token_ids: I64) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise, a number for each token id (Gumbel 1954; Maddison et al. 2014).

    The token with the largest sum of logit and noise is a draw from the softmax. Unlike an inverted cumulative
    distribution, that token changes only where the two best sums change places: rounding elsewhere in the vocabulary,
    as when a request is resumed and its KV computed in other batches, leaves it alone.
    """
    return -np.log(-np.log(uniforms(key, token_ids)))


def uniforms(key: np.uint64, counters: I64) -> npt.NDArray[np.float64]:
    """Numbers in (0, 1), never either end, with 52 random bits for each counter: with 53 the last would round to 1."""
    bits = _mix(key + counters.astype(np.uint64) * _GOLDEN)
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def keys(*parts: I64) -> U64:
    """A key from the numbers at the same place of each of `parts`, [n] each -> [n]."""
    state = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        state = _mix(state + part.astype(np.uint64))
    return state


def _mix(x: U64) -> U64:
    """One step of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = x + _GOLDEN  # wraps, as it should
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
