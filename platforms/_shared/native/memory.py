"""Host memory in which weights lie packed, in the order that the kernels stream them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from core.defaults import TorchMemory, check_parts
from core.platform import MemoryInfo, QuantizedRows
from core.types import DType
from platforms._shared import _native
from platforms._shared.native.packed import PackedWeight
from platforms._shared.native.quantized import QuantizedWeight, StackedWeight

#: The element types that the kernels multiply.
PACKED_TYPES = (DType.FLOAT32, DType.BFLOAT16)

#: Bytes of the stretches that packed weights lie in, one after the other as they are read: few matrices of a small
#: model fill a huge page, and each would end in pages of its own.
_STRETCH = 64 << 20
_LINE = 64  # of the cache


class CpuMemory(TorchMemory):
    """Tensors, but for weights that are matrices: those are `PackedWeight`s, and `StackedWeight`s if quantised."""

    def __init__(self, info: Callable[[], MemoryInfo]) -> None:
        super().__init__("cpu", info)
        self._stretch: Tensor | None = None  # the newest; the weights in it hold the older ones
        self._taken = 0  # bytes of it

    def make_handle(self, shape: tuple[int, ...], dtype: DType, usage: str) -> Any:
        if usage != "weights" or len(shape) != 2 or 0 in shape or dtype not in PACKED_TYPES:
            return super().make_handle(shape, dtype, usage)
        return PackedWeight((shape[0], shape[1]), dtype, self._room(_native.packed_bytes(dtype, *shape)))

    # --- quantised weights ---

    def quantized_size(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> int:
        """Bytes of the parts: whole panels of 16 outputs where they are quantised."""
        check_parts(shape, parts)
        return sum(
            _native.quantized_bytes(part.scheme, part.rows, shape[1])
            if part.scheme
            else self.alloc_size((part.rows, shape[1]), dtype)
            for part in parts
        )

    def alloc_quantized(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> Any:
        """A `StackedWeight`. Raises OutOfDeviceMemory; Unsupported for a scheme or a number of inputs that cannot be."""

        def make() -> StackedWeight:
            return StackedWeight([self._part((part.rows, shape[1]), dtype, part.scheme) for part in parts])

        size = self.quantized_size(shape, dtype, parts)
        return self.hold(size, "weights", f"{list(shape)} of {', '.join(part.scheme or dtype for part in parts)}", make)

    def _part(self, shape: tuple[int, int], dtype: DType, scheme: str | None) -> PackedWeight | QuantizedWeight:
        if scheme is None:
            return PackedWeight(shape, dtype, self._room(_native.packed_bytes(dtype, *shape)))
        return QuantizedWeight(shape, dtype, scheme, self._room(_native.quantized_bytes(scheme, *shape)))

    def upload_blocks(self, handle: Any, blocks: Tensor, scheme: str, *, row: int = 0) -> None:
        """Repack a file's blocks as rows `row …`. Raises ValueError if they do not fit."""
        handle.write_blocks(blocks, scheme, row)

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
        if isinstance(handle, PackedWeight | StackedWeight):
            handle.write(data, row)
        else:
            super().upload(handle, data, row=row)

    def download(self, handle: Any) -> Tensor:
        """The contents as a tensor: itself, or a copy of a weight: in float32 where it is quantised."""
        return handle.read() if isinstance(handle, PackedWeight | StackedWeight) else super().download(handle)
