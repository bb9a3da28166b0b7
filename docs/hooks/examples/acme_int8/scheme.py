"""Decodes at load: a matrix `x.weight` of int8 with `x.scale`, float32 of one row's largest value each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import WeightError
from core.types import DType
from core.weights.base import Bytes, TensorMeta, WeightReader


class Int8Reader(WeightReader):
    """The checkpoint that `reader` reads, every tensor as the model declares it."""

    def __init__(self, reader: WeightReader, quantization_config: Mapping[str, Any]) -> None:
        self.path = reader.path
        self._reader = reader
        self._stored = reader.tensors()

    def tensors(self) -> Mapping[str, TensorMeta]:
        """The decoded ones; scales are no tensors of the model."""
        return {
            name: msgspec.structs.replace(meta, dtype=DType.FLOAT32) if meta.dtype is DType.INT8 else meta
            for name, meta in self._stored.items()
            if not name.endswith(".scale")
        }

    def read(self, name: str, rows: slice | None = None) -> NDArray[Any]:
        """The tensor or some rows of it. Raises WeightError where a matrix has no scale."""
        data = self._reader.read(name, rows)
        if name not in self._stored or self._stored[name].dtype is not DType.INT8:
            return data
        scale = name.removesuffix(".weight") + ".scale"
        if scale not in self._stored:
            raise WeightError(self.path, "is int8 and has no scale beside it", tensor=name)
        decoded: NDArray[Any] = data.astype(np.float32) * (self._reader.read(scale, rows)[:, None] / 127)
        return decoded

    def stored(self, name: str) -> Bytes:
        """As in the file."""
        return self._reader.stored(name)

    def release(self, name: str) -> None:
        """Let go of its pages."""
        self._reader.release(name)

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()
