"""Device memory of a check: filled from the host, read back, guarded, and freed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.defaults import torch_dtype
from core.platform import MemoryBackend
from core.types import DType

#: Rows before and after an output, and columns around a view, that nobody may touch.
GUARD_ROWS, GUARD_COLUMNS = 2, 3
_GUARD = {True: float("nan"), False: 77}  # by whether the type is a float


@dataclass(frozen=True)
class Held:
    """A handle, or a part of one where handles are torch's: `handle` is what a kernel gets."""

    memory: MemoryBackend
    whole: Any
    rows: slice
    columns: slice | None

    @property
    def handle(self) -> Any:
        """The part as a tensor, or the whole handle where it is opaque."""
        if not isinstance(self.whole, Tensor):
            return self.whole
        part = self.whole[self.rows]
        return part if self.columns is None else part[:, self.columns]

    def read(self) -> Tensor:
        """The contents on the host, as a copy."""
        self.memory.synchronize()
        downloaded: Tensor = self.memory.download(self.whole)
        part = downloaded[self.rows] if isinstance(self.whole, Tensor) else downloaded
        return (part if self.columns is None else part[:, self.columns]).clone()

    def surroundings(self) -> Tensor:
        """The whole with the part itself blanked out."""
        self.memory.synchronize()
        whole: Tensor = self.memory.download(self.whole).clone()
        part = whole[self.rows]
        (part if self.columns is None else part[:, self.columns]).zero_()
        return whole


class Buffers:
    """Everything one check allocated."""

    def __init__(self, memory: MemoryBackend) -> None:
        self.memory = memory
        self._handles: list[Any] = []

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str = "activations") -> Any:
        """A handle that `free` gives back."""
        return self.keep(self.memory.alloc(tuple(shape), dtype, usage))

    def keep(self, handle: Any) -> Any:
        """A handle that was allocated elsewhere, for `free` to give back."""
        self._handles.append(handle)
        return handle

    def put(self, data: Tensor, dtype: DType, usage: str = "activations") -> Held:
        """`data` on the device, as `dtype`."""
        handle = self.alloc(data.shape, dtype, usage)
        self.memory.upload(handle, data.to(torch_dtype(dtype)))
        return Held(self.memory, handle, slice(None), None)

    def put_view(self, data: Tensor, dtype: DType) -> Held:
        """`data` [T, W] as columns of a wider tensor, as `core.ops.split` makes them; contiguous where handles are
        opaque, whose views only the platform's own compiler can make."""
        width = data.shape[1]
        wide = torch.full((data.shape[0], width + 2 * GUARD_COLUMNS), _GUARD[True])
        wide[:, GUARD_COLUMNS : GUARD_COLUMNS + width] = data
        held = self.put(wide, dtype)
        if not isinstance(held.whole, Tensor):
            return self.put(data, dtype)
        return Held(self.memory, held.whole, slice(None), slice(GUARD_COLUMNS, GUARD_COLUMNS + width))

    def out(self, shape: Sequence[int], dtype: DType) -> Held:
        """Room for an output that holds garbage, between guard rows where handles are torch's."""
        garbage = _GUARD[dtype in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)]
        guarded = torch.full((shape[0] + 2 * GUARD_ROWS, *shape[1:]), garbage)
        held = self.put(guarded, dtype)
        if isinstance(held.whole, Tensor):
            return Held(self.memory, held.whole, slice(GUARD_ROWS, GUARD_ROWS + shape[0]), None)
        return self.put(guarded[: shape[0]], dtype)

    def free(self) -> None:
        """Give everything back."""
        handles, self._handles = self._handles, []
        for handle in handles:
            self.memory.free(handle)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, NaN included."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(_bits(left), _bits(right))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor


def untouched(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit by bit, but for a NaN's: a device that widens what it moves may change those."""
    return same_bits(left, right) or (
        torch.equal(left.isnan(), right.isnan()) and same_bits(left.nan_to_num(), right.nan_to_num())
    )
