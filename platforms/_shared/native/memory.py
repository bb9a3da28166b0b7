"""Host memory in which weights lie packed, in the order that the kernels stream them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.defaults import TorchMemory, torch_dtype
from core.platform import MemoryInfo
from core.types import DType
from platforms._shared import _native
from platforms._shared.native.operands import operand

#: The element types that the kernels multiply.
PACKED_TYPES = (DType.FLOAT32, DType.BFLOAT16)

#: Bytes of the stretches that packed weights lie in, one after the other as they are read: few matrices of a small
#: model fill a huge page, and each would end in pages of its own.
_STRETCH = 64 << 20
_LINE = 64  # of the cache


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


class CpuMemory(TorchMemory):
    """Tensors, but for weights that are matrices: those are `PackedWeight`s."""

    def __init__(self, info: Callable[[], MemoryInfo]) -> None:
        super().__init__("cpu", info)
        self._stretch: Tensor | None = None  # the newest; the weights in it hold the older ones
        self._taken = 0  # bytes of it

    def make_handle(self, shape: tuple[int, ...], dtype: DType, usage: str) -> Any:
        if usage != "weights" or len(shape) != 2 or 0 in shape or dtype not in PACKED_TYPES:
            return super().make_handle(shape, dtype, usage)
        return PackedWeight((shape[0], shape[1]), dtype, self._room(_native.packed_bytes(dtype, *shape)))

    def _room(self, size: int) -> Tensor:
        """Zeroed uint8 [size], behind the weight that was made before it."""
        if size > _STRETCH:
            return self._bytes(size)
        if self._stretch is None or self._taken + size > _STRETCH:
            self._stretch, self._taken = self._bytes(_STRETCH), 0
        piece = self._stretch[self._taken : self._taken + size]
        self._taken += -(-size // _LINE) * _LINE
        return piece

    def _bytes(self, size: int) -> Tensor:
        memory: Tensor = super().make_handle((size,), DType.UINT8, "weights")
        return memory

    def upload(self, handle: Any, data: Tensor, *, row: int = 0) -> None:
        """Copy `data` into rows `row …`, converting the element type. Raises ValueError if it does not fit."""
        if isinstance(handle, PackedWeight):
            handle.write(data, row)
        else:
            super().upload(handle, data, row=row)

    def download(self, handle: Any) -> Tensor:
        """The contents as a tensor: itself, or a packed weight's copy."""
        return handle.read() if isinstance(handle, PackedWeight) else super().download(handle)
