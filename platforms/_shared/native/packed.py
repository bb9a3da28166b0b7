"""A weight of floats as it lies packed, in the order that the kernels stream it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.defaults import torch_dtype
from core.types import DType
from platforms._shared import _native
from platforms._shared.native.operands import operand


class PackedWeight:
    """A weight [outputs, inputs] in the layout of `csrc/cpu/kernels/kernels.hpp`; there is no other copy of it.

    `nbytes` are those of its elements: outputs that fill up the last panel of 16 are not counted.
    """

    def __init__(self, shape: tuple[int, int], dtype: DType, storage: Tensor) -> None:
        """`storage`: zeroed uint8 [`_native.packed_bytes(…)`]."""
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.native = _native.Weight(storage.data_ptr(), dtype, *shape)
        self._storage = storage

    @classmethod
    def of(cls, weight: Tensor, dtype: DType) -> PackedWeight:
        """A packed copy of a tensor."""
        shape = (weight.shape[0], weight.shape[1])
        packed = cls(shape, dtype, torch.zeros(_native.packed_bytes(dtype, *shape), dtype=torch.uint8))
        packed.write(weight, 0)
        return packed

    def write(self, data: Tensor, row: int) -> None:
        """Rows `row …`, converted to the element type. Raises ValueError where they do not fit."""
        if data.dim() != 2 or data.shape[1] != self.shape[1] or not 0 <= row <= self.shape[0] - data.shape[0]:
            raise ValueError(f"{list(data.shape)} does not fit rows {row} … of {list(self.shape)}")
        if len(data):
            data = data.to(torch_dtype(self.dtype)).contiguous()
            self.native.pack(row, len(data), operand(data))

    def read(self) -> Tensor:
        """An unpacked copy."""
        data = torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        self.native.unpack(0, self.shape[0], operand(data))
        return data
