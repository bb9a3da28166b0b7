"""The same platform with handles that are no tensors: nobody but the platform may look inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mutant_platform import Memory, MutantPlatform, RowAttention
from torch import Tensor

from core.defaults import EagerExecutable, ReferenceKernels
from core.platform import Bindings, Bucket, Executable, Kernel, MemoryBackend, MemoryInfo, QuantizedRows
from core.types import DType


class Handle:
    """A tensor that is nobody's business."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def opened(value: Any) -> Any:
    """A handle's tensor, through planes; whatever else there is as it is."""
    if isinstance(value, Handle):
        return value.tensor
    return tuple(map(opened, value)) if isinstance(value, tuple) else value


def opening(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel of handles."""
    return lambda *arguments, **attrs: kernel(*map(opened, arguments), **attrs)


class OpaqueMemory(MemoryBackend):
    """Handles over the other backend's tensors."""

    def __init__(self) -> None:
        self._real = Memory()

    def info(self) -> MemoryInfo:
        return self._real.info()

    def alloc_size(self, shape: Sequence[int], dtype: DType) -> int:
        return self._real.alloc_size(shape, dtype)

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Handle:
        return Handle(self._real.alloc(shape, dtype, usage))

    def quantized_size(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> int:
        return self._real.quantized_size(shape, dtype, parts)

    def alloc_quantized(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> Handle:
        return Handle(self._real.alloc_quantized(shape, dtype, parts))

    def upload_blocks(self, handle: Handle, blocks: Tensor, scheme: str, *, row: int = 0) -> None:
        self._real.upload_blocks(handle.tensor, blocks, scheme, row=row)

    def free(self, handle: Any) -> None:
        if not isinstance(handle, Handle):
            raise ValueError("this is no handle of ours")
        self._real.free(handle.tensor)

    def upload(self, handle: Handle, data: Tensor, *, row: int = 0) -> None:
        self._real.upload(handle.tensor, data, row=row)

    def download(self, handle: Handle) -> Tensor:
        return self._real.download(handle.tensor).clone()

    def in_use(self) -> Mapping[str, int]:
        return self._real.in_use()


class OpaqueKernels(ReferenceKernels):
    """Kernels of handles."""

    def get(self, op: str) -> Kernel:
        return opening(super().get(op))


class OpaqueAttention(RowAttention):
    """Attention over handles."""

    name = "opaque"
    write_kv = opening(RowAttention.write_kv)  # type: ignore[assignment]
    forward = opening(RowAttention.forward)  # type: ignore[assignment]
    copy_blocks = opening(RowAttention.copy_blocks)  # type: ignore[assignment]
    export_blocks = opening(RowAttention.export_blocks)  # type: ignore[assignment]
    import_blocks = opening(RowAttention.import_blocks)  # type: ignore[assignment]


def _executable(bindings: Bindings, bucket: Bucket | None) -> Executable:
    handles = {index: opened(handle) for index, handle in bindings.handles.items()}
    kernels = {op: kernel for op, kernel in bindings.kernels.items()}
    arena = opened(bindings.arena)
    return EagerExecutable(Bindings(bindings.program, handles, arena, bindings.offsets, bindings.limits, kernels))


def make_opaque(platform: MutantPlatform) -> None:
    """Let the platform hand out handles."""
    own = platform.table
    assert isinstance(own, ReferenceKernels)
    platform.memory_backend = OpaqueMemory()
    platform.table = OpaqueKernels(own._kernels)
    platform.attention_backends = (OpaqueAttention(),)
    platform.executable = _executable
