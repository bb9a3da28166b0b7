"""Weights of 8 and 4 bits in the layout of `csrc/cpu/kernels/quantized.hpp`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.types import DType
from platforms._shared import _native
from platforms._shared.native.operands import operand
from platforms._shared.native.packed import PackedWeight


class QuantizedWeight:
    """A weight [outputs, inputs] in one scheme; there is no other copy of it. `nbytes` counts whole panels."""

    def __init__(self, shape: tuple[int, int], dtype: DType, scheme: str, storage: Tensor) -> None:
        """`storage`: zeroed uint8 [`_native.quantized_bytes(…)`] at a cache line. `dtype` is that of products with it."""
        self.shape = shape
        self.scheme = scheme
        self.nbytes = len(storage)
        self.native = _native.QuantizedWeight(storage.data_ptr(), dtype, scheme, *shape)
        self._storage = storage

    def write(self, data: Tensor, row: int) -> None:
        """Quantise rows `row …`. Raises ValueError where they do not fit, or the scheme takes blocks alone."""
        if data.dim() != 2:
            raise ValueError(f"{list(data.shape)} is not rows of {list(self.shape)}")
        if not len(data):
            return
        if data.dtype not in (torch.float32, torch.bfloat16):
            data = data.float()
        self.native.quantize(row, len(data), operand(data.contiguous()))

    def write_blocks(self, blocks: Tensor, row: int) -> None:
        """Rows `row …` from a file's blocks, uint8 [rows, bytes of a row]. Raises ValueError where they do not fit."""
        if not len(blocks):
            return
        blocks = blocks.contiguous()
        self.native.pack_blocks(row, blocks.shape[0], blocks.data_ptr(), blocks.shape[1])

    def read(self) -> Tensor:
        """What it stands for, in float32."""
        data = torch.empty(self.shape)
        self.native.dequantize(0, self.shape[0], operand(data))
        return data


@dataclass(frozen=True)
class Part:
    """Rows of a weight, from `row` on, that are kept alike."""

    row: int
    weight: PackedWeight | QuantizedWeight

    @property
    def rows(self) -> int:
        """How many."""
        return self.weight.shape[0]


class StackedWeight:
    """A weight [outputs, inputs] whose rows are kept in one or several ways, one part below the other."""

    def __init__(self, weights: Sequence[PackedWeight | QuantizedWeight]) -> None:
        rows = [0]
        for weight in weights:
            rows.append(rows[-1] + weight.shape[0])
        self.shape = (rows[-1], weights[0].shape[1])
        self.parts = [Part(row, weight) for row, weight in zip(rows, weights, strict=False)]
        self.nbytes = sum(weight.nbytes for weight in weights)

    def write(self, data: Tensor, row: int) -> None:
        """Rows `row …`, each part's in its own way. Raises ValueError where they do not fit."""
        if data.dim() != 2 or data.shape[1] != self.shape[1] or not 0 <= row <= self.shape[0] - len(data):
            raise ValueError(f"{list(data.shape)} does not fit rows {row} … of {list(self.shape)}")
        for part in self.parts:
            first, last = max(row, part.row), min(row + len(data), part.row + part.rows)
            if first < last:
                part.weight.write(data[first - row : last - row], first - part.row)

    def write_blocks(self, blocks: Tensor, scheme: str, row: int) -> None:
        """Rows `row …` of one part. Raises ValueError where they do not fit, or are kept in another scheme."""
        for part in self.parts:
            weight = part.weight
            if isinstance(weight, QuantizedWeight) and part.row <= row < part.row + part.rows:
                if weight.scheme != scheme:
                    raise ValueError(f"rows {row} … are kept in {weight.scheme}, not in {scheme}")
                weight.write_blocks(blocks, row - part.row)
                return
        raise ValueError(f"row {row} of {list(self.shape)} is not kept in {scheme}")

    def read(self) -> Tensor:
        """What it stands for, in float32."""
        return torch.cat([part.weight.read().float() for part in self.parts])
