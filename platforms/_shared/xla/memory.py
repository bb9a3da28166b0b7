"""Memory of an XLA device. Handles are torch_xla's tensors: they have no address, and writes wait until a sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_xla
from torch import Tensor

from core.defaults import TorchMemory, torch_dtype
from core.platform import MemoryInfo
from core.types import DType

_xla = torch_xla._XLAC


class XlaMemory(TorchMemory):
    """What a step has not run yet is not in memory yet: `synchronize` runs it and waits."""

    def __init__(self, device: torch.device, info: Callable[[], MemoryInfo]) -> None:
        super().__init__("cpu", info)
        self._device = device
        self._mirrors: dict[int, Tensor] = {}  # what inputs hold, by id of the handle

    def make_handle(self, shape: tuple[int, ...], dtype: DType, usage: str) -> Any:
        """Zeros on the device."""
        del usage
        return torch.zeros(shape, dtype=torch_dtype(dtype)).to(self._device)

    def upload(self, handle: Any, data: Tensor, *, row: int = 0) -> None:
        """Copy `data` into rows `row …`, converting the element type on the host. Raises ValueError if it does not fit."""
        usage = self._held[id(handle)][1]
        if usage == "inputs":
            self._renew(handle, data, row)
            return
        super().upload(handle, data, row=row)
        if usage == "weights":
            torch_xla.sync()  # or the pieces of a whole model wait in host memory

    def _renew(self, handle: Any, data: Tensor, row: int) -> None:
        """An input is kept on the host too, and comes to the device whole: no program is needed to put rows in place."""
        mirror = self._mirrors.get(id(handle))
        if mirror is None:
            mirror = self._mirrors[id(handle)] = torch.zeros(tuple(handle.shape), dtype=handle.dtype)
        target = mirror[row : row + len(data)]
        if target.shape != data.shape:
            raise ValueError(f"{list(data.shape)} does not fit rows {row} … of {list(mirror.shape)}")
        target.copy_(data)
        _xla._replace_xla_tensor(handle, mirror.to(self._device))

    def free(self, handle: Any) -> None:
        """Give a tensor back. Raises ValueError on one that was not allocated here, or is already free."""
        super().free(handle)
        self._mirrors.pop(id(handle), None)

    def download(self, handle: Any) -> Tensor:
        """The contents on the host."""
        torch_xla.sync()  # all that waits, so that nothing is computed for this one alone and then again
        found: Tensor = handle.cpu()
        return found

    def synchronize(self) -> None:
        """Run what waits, and wait for it."""
        torch_xla.sync(wait=True)
