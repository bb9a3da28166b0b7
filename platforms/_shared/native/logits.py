"""Choosing tokens by the native kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.logits import Choices, LogitsKernels
from platforms._shared import _native

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class NativeLogits(LogitsKernels):
    """`csrc/cpu/choose.cpp`, rows shared by the threads."""

    def choose(self, logits: npt.NDArray[np.float32], choices: Choices) -> Ints:
        """Token ids [n]. Raises ValueError for a row that is not there."""
        found = np.empty(len(choices.rows), np.int64)
        each = (
            _contiguous(choices.rows, np.int32),
            _contiguous(choices.temperature, np.float64),
            _contiguous(choices.top_k, np.int32),
            _contiguous(choices.top_p, np.float64),
            _contiguous(choices.min_p, np.float64),
            _contiguous(choices.seed, np.int64),
            _contiguous(choices.choice, np.int64),
            _contiguous(choices.position, np.int64),
            found,
        )
        _native.choose(*_rows(logits), len(found), *(array.ctypes.data for array in each))
        return found

    def logprobs(
        self, logits: npt.NDArray[np.float32], rows: npt.NDArray[np.int32], token_ids: Ints, count: int
    ) -> tuple[Doubles, Ints, Ints]:
        """As the contract says. Raises ValueError for a row or a token that is not there."""
        values, ids = np.empty((len(rows), 1 + count)), np.empty((len(rows), 1 + count), np.int64)
        ranks = np.empty(len(rows), np.int64)
        each = (_contiguous(rows, np.int32), _contiguous(token_ids, np.int64), values, ids, ranks)
        _native.logprobs(*_rows(logits), len(rows), count, *(array.ctypes.data for array in each))
        return values, ids, ranks


def _contiguous(array: npt.NDArray[np.generic], dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(array, dtype)


def _rows(logits: npt.NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Address, rows, columns and the elements from row to row. Raises ValueError where the kernels cannot read it."""
    if logits.dtype != np.float32 or logits.ndim != 2 or logits.strides[1] != logits.itemsize:
        raise ValueError(f"logits: float32 rows are due, got {logits.dtype} {logits.shape}, strides {logits.strides}")
    return logits.ctypes.data, logits.shape[0], logits.shape[1], logits.strides[0] // logits.itemsize
