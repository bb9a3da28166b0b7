"""Choices for tests, of which only what matters is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from core.logits import Choices


def choices(rows: npt.ArrayLike, **fields: Any) -> Choices:
    """A token for each of `rows`; a field is a number for all of them, or one each. Temperature 1, no filter."""
    count = len(np.asarray(rows))

    def each(name: str, default: float, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.broadcast_to(np.asarray(fields.get(name, default), dtype), (count,))

    return Choices(
        rows=np.asarray(rows, np.int32),
        temperature=each("temperature", 1.0, np.float64),
        top_k=each("top_k", 0, np.int32),
        top_p=each("top_p", 1.0, np.float64),
        min_p=each("min_p", 0.0, np.float64),
        seed=each("seed", 0, np.int64),
        choice=each("choice", 0, np.int64),
        position=each("position", 0, np.int64),
    )
