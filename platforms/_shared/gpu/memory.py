"""GPU memory through torch's allocator, with copies by way of pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.defaults import TorchMemory
from core.platform import MemoryInfo
from core.types import DType
from platforms._shared.gpu.device import Device

#: Bytes that are left free for graphs, libraries' workspaces and what torch's allocator rounds up.
RESERVE = 1 << 30
#: Bytes of pinned memory that uploads go through; what is larger is copied at once, as weights are.
_STAGING = 4 << 20
_ALIGNED = 256
#: Bytes from which an output is read through pinned memory of its own: the logits, at every step.
_PINNED_FROM = 1 << 20


class GpuMemory(TorchMemory):
    """Tensors of one GPU. Small uploads do not wait for the device, which does wait for them."""

    def __init__(self, device: Device) -> None:
        super().__init__(device.name, self._free)
        self._gpu = device
        self._staging = device.pinned(_STAGING)
        self._taken = 0  # bytes of it that copies may still be reading
        self._read: dict[int, Tensor] = {}  # pinned memory of large outputs, by the handle's id

    def _free(self) -> MemoryInfo:
        found = self._gpu.memory()
        return MemoryInfo(found.total, max(0, found.free - RESERVE))

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Any:
        """A zeroed tensor, and for a large output the pinned memory that it is read through."""
        handle = super().alloc(shape, dtype, usage)
        if usage == "inputs" and handle.nbytes >= _PINNED_FROM:
            self._read[id(handle)] = self._gpu.pinned(handle.nbytes).view(handle.dtype).view(handle.shape)
        return handle

    def free(self, handle: Any) -> None:
        """Give a tensor back. Raises ValueError on one that is not held."""
        super().free(handle)
        self._read.pop(id(handle), None)

    def upload(self, handle: Any, data: Tensor, *, row: int = 0) -> None:
        """Copy `data` into rows `row …`; it may change as soon as this returns. Raises ValueError if it does not fit."""
        if data.device.type != "cpu" or id(handle) in self._parts or data.numel() * handle.element_size() > _STAGING:
            super().upload(handle, data, row=row)
            return
        target = handle[row : row + data.shape[0]]
        if target.shape != data.shape:
            raise ValueError(f"{list(data.shape)} does not fit rows {row} … of {list(handle.shape)}")
        target.copy_(self._staged(data, handle.dtype), non_blocking=True)

    def _staged(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        size = data.numel() * dtype.itemsize
        if self._taken + size > _STAGING:
            self._gpu.synchronize()  # then nothing is being read
            self._taken = 0
        place = self._staging[self._taken : self._taken + size].view(dtype).view(data.shape)
        self._taken += -(-size // _ALIGNED) * _ALIGNED
        return place.copy_(data)

    def download(self, handle: Any) -> Tensor:
        """The contents on the host, which the next download of a large output overwrites."""
        pinned = self._read.get(id(handle))
        if pinned is None:
            return super().download(handle)
        pinned.copy_(handle, non_blocking=True)
        self._gpu.synchronize()
        return pinned

    def synchronize(self) -> None:
        """Wait for the device. Raises DeviceLost."""
        self._gpu.synchronize()
