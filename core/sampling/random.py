"""Random numbers that depend on nothing but their key.

A request that is preempted, resumed, batched otherwise or moved to another engine draws the same numbers, because
a draw is a hash of (seed, choice index, position) and no state is kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

U64 = npt.NDArray[np.uint64]


def uniforms(
    seeds: npt.NDArray[np.int64], choices: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each key."""
    state = _mix(seeds.astype(np.uint64))
    state = _mix(state + choices.astype(np.uint64))
    state = _mix(state + positions.astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: U64) -> U64:
    """One step of SplitMix64 (Steele, Lea & Flood 2014)."""
    x = x + _GOLDEN  # wraps, as it should
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
