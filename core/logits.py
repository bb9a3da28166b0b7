"""What choosing a token is: the contract of kernels for it, and their reference in NumPy.

With x the logits of a row and max the largest of them, a token's gap is (x - max) / temperature, and its probability
goes with e^gap. All is float64 from here on, and probabilities are summed as integers, whose sums have no order: a
choice is the same on every processor, but where two numbers are nearer to each other than a logarithm's rounding.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core import noise

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]

#: Weights are e^gap in units of 2^-40.
_WEIGHT_UNIT = 2.0**40
#: Lower temperatures choose as this one does: nothing but the largest logit has a chance.
_LEAST_TEMPERATURE = 1e-30


@dataclass(frozen=True)
class Choices:
    """How n tokens are chosen, an array [n] of each on the host."""

    rows: Indices  # of the logits, one for each token
    temperature: Doubles  # 0: the largest logit
    top_k: Indices  # not in [1, vocab): off
    top_p: Doubles  # 1: off
    min_p: Doubles  # 0: off
    seed: Ints
    choice: Ints
    position: Ints


class LogitsKernels(abc.ABC):
    """Choosing tokens from logits that the host can read: float32 [rows, vocab], rows of any stride, never changed.

    `ReferenceLogits` is their meaning, and serves where a platform has none. What a token depends on is its
    own row and its own numbers of `Choices`, nothing else.
    """

    @abc.abstractmethod
    def choose(self, logits: Floats, choices: Choices) -> Ints:
        """Token ids [n]."""

    @abc.abstractmethod
    def logprobs(self, logits: Floats, rows: Indices, token_ids: Ints, count: int) -> tuple[Doubles, Ints, Ints]:
        """Of token_ids [n] in rows [n]: log probabilities [n, 1 + count], the token's own before those of the `count`
        most likely ones; whose they are [n, 1 + count]; and the token's rank [n], 1 if none is more likely."""


class ReferenceLogits(LogitsKernels):
    """For logits that the host can read; row by row."""

    def choose(self, logits: Floats, choices: Choices) -> Ints:
        """The largest logit at temperature 0, else a draw from what the filters leave.

        A draw takes the largest sum of gap and noise (`core.noise`), the first of equals. Where a row holds a NaN or
        +inf, or nothing but -inf, the choice is NumPy's argmax at every temperature.
        """
        keys = noise.keys(choices.seed, choices.choice, choices.position)
        tokens = np.empty(len(keys), np.int64)
        for i, row in enumerate(choices.rows):
            x = logits[row]
            tokens[i] = best = x.argmax()
            if choices.temperature[i] == 0.0 or not np.isfinite(x[best]):
                continue
            gaps = _gaps(x, x[best], choices.temperature[i])
            left = np.flatnonzero(kept(x, gaps, choices.top_k[i], choices.top_p[i], choices.min_p[i]))
            tokens[i] = left[(gaps[left] + noise.gumbels(keys[i], left)).argmax()]
        return tokens

    def logprobs(self, logits: Floats, rows: Indices, token_ids: Ints, count: int) -> tuple[Doubles, Ints, Ints]:
        """Of equally likely alternatives the first comes first. All NaN where `choose` finds no probabilities."""
        values, ids = np.empty((len(rows), 1 + count)), np.empty((len(rows), 1 + count), np.int64)
        ranks = np.ones(len(rows), np.int64)
        ids[:, 0] = token_ids
        for i, row in enumerate(rows):
            x = logits[row]
            if np.isfinite(x.max()):
                gaps = _gaps(x, x.max(), 1.0)
                ids[i, 1:] = _most_likely(x, count)
                values[i] = gaps[ids[i]] - math.log(int(_weights(gaps).sum()) / _WEIGHT_UNIT)
                ranks[i] = 1 + np.count_nonzero(x > x[token_ids[i]])
            else:
                ids[i, 1:] = np.arange(count)
                values[i] = np.nan
        return values, ids, ranks


def _gaps(x: Floats, largest: np.float32, temperature: float) -> Doubles:
    sharpness = 1.0 / max(temperature, _LEAST_TEMPERATURE)
    found: Doubles = (x.astype(np.float64) - np.float64(largest)) * sharpness
    return found


def _weights(gaps: Doubles) -> Ints:
    return np.rint(np.exp(gaps) * _WEIGHT_UNIT).astype(np.int64)


def kept(x: Floats, gaps: Doubles, top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.bool_]:
    """[vocab]: what min-p, top-k and then top-p leave; those as likely as the last one left stay too."""
    left = np.ones(len(x), np.bool_) if min_p == 0.0 else gaps >= math.log(min_p)
    if 0 < top_k < len(x):
        left &= x >= np.partition(x, -top_k)[-top_k]
    if top_p < 1.0:
        left &= gaps >= _nucleus_cut(gaps[left], top_p)
    return left


def _nucleus_cut(gaps: Doubles, top_p: float) -> float:
    """The smallest gap in the nucleus (Holtzman et al. 2020): the fewest tokens that reach top_p together."""
    ordered = np.sort(gaps)[::-1]
    weights = _weights(ordered)
    before = weights.cumsum() - weights
    inside = np.count_nonzero(before.astype(np.float64) < top_p * float(weights.sum()))
    return float(ordered[inside - 1])


def _most_likely(x: Floats, count: int) -> Ints:
    if count == 0:
        return np.empty(0, np.int64)
    found = np.flatnonzero(x >= np.partition(x, -count)[-count])
    return found[np.argsort(-x[found], kind="stable")[:count]]
