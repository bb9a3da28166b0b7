"""Faults of device memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mutant_faults import fault
from mutant_platform import Memory, MutantPlatform
from torch import Tensor

from core.defaults import torch_dtype
from core.errors import OutOfDeviceMemory
from core.types import DType


def wrong(name: str, what: str, caught_by: str) -> Callable[[type[Memory]], type[Memory]]:
    """Register a memory backend that is wrong."""

    def register(memory: type[Memory]) -> type[Memory]:
        @fault(name, what, caught_by)
        def breaks(platform: MutantPlatform) -> None:
            platform.memory_backend = memory()

        return memory

    return register


@wrong("memory-leak", "what is freed does not come back", "memory.no_leak")
class Leak(Memory):
    def free(self, handle: Tensor) -> None:
        super().free(handle)
        self.lost += handle.nbytes


@wrong("free-uncounted", "what is freed stays in in_use()", "memory.accounted")
class FreeUncounted(Memory):
    def __init__(self) -> None:
        super().__init__()
        self._most: dict[str, int] = {}

    def in_use(self) -> Mapping[str, int]:
        for usage, size in super().in_use().items():
            self._most[usage] = max(size, self._most.get(usage, 0))
        return self._most


@wrong("alloc-size-low", "alloc_size() forgets the rounding", "memory.accounted")
class AllocSizeLow(Memory):
    def in_use(self) -> Mapping[str, int]:
        return {usage: -(-size // 512) * 512 for usage, size in super().in_use().items()}


@wrong("not-zeroed", "alloc() gives what was there before", "memory.zeroed")
class NotZeroed(Memory):
    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Tensor:
        handle = super().alloc(shape, dtype, usage)
        return handle.fill_(1)


@wrong("misaligned", "handles begin one element after a cache line", "memory.aligned")
class Misaligned(Memory):
    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Tensor:
        count = int(torch.tensor(shape).prod())
        handle = torch.zeros(count + 1, dtype=torch_dtype(dtype))[1:].view(*shape)
        self._held[id(handle)] = (handle, usage)
        return handle


@wrong("oom-as-memoryerror", "too large an allocation raises MemoryError", "memory.out_of_memory")
class OutAsMemoryError(Memory):
    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Tensor:
        try:
            return super().alloc(shape, dtype, usage)
        except OutOfDeviceMemory as error:
            raise MemoryError(str(error)) from error


@wrong("oom-sticks", "after an allocation that was refused no other works", "memory.out_of_memory")
class OutSticks(Memory):
    _refused = False

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Tensor:
        if self._refused:
            raise OutOfDeviceMemory("the device is in an error state")
        try:
            return super().alloc(shape, dtype, usage)
        except OutOfDeviceMemory:
            self._refused = True
            raise


@wrong("double-free", "freeing twice is not noticed", "memory.double_free")
class DoubleFree(Memory):
    def free(self, handle: Tensor) -> None:
        self._held.pop(id(handle), None)


@wrong("upload-ignores-row", "upload() always begins at row 0", "memory.round_trip")
class UploadIgnoresRow(Memory):
    def upload(self, handle: Tensor, data: Tensor, *, row: int = 0) -> None:
        super().upload(handle, data)


@wrong("upload-casts-bits", "upload() takes the bits of a number of another type", "memory.round_trip")
class UploadCastsBits(Memory):
    def upload(self, handle: Tensor, data: Tensor, *, row: int = 0) -> None:
        same_size = data.dtype != handle.dtype and data.element_size() == handle.element_size()
        super().upload(handle, data.view(handle.dtype) if same_size else data, row=row)


@wrong("download-stale", "download() gives what it gave the last time", "memory.fresh_reads")
class DownloadStale(Memory):
    def __init__(self) -> None:
        super().__init__()
        self._read: dict[int, Tensor] = {}

    def download(self, handle: Any) -> Tensor:
        return self._read.setdefault(id(handle), super().download(handle).clone())

    def free(self, handle: Tensor) -> None:
        super().free(handle)
        self._read.pop(id(handle), None)


@wrong("host-view-copied", "host_view() gives a copy", "memory.host_view")
class HostViewCopied(Memory):
    def host_view(self, handle: Tensor) -> Tensor:
        return handle.clone()


@wrong("upload-aliases", "upload() keeps the host's tensor and reads it later", "memory.fresh_reads")
class UploadAliases(Memory):
    def __init__(self) -> None:
        super().__init__()
        self._pending: dict[int, tuple[Tensor, int]] = {}

    def upload(self, handle: Tensor, data: Tensor, *, row: int = 0) -> None:
        super().upload(handle, data, row=row)
        self._pending[id(handle)] = (data, row)

    def download(self, handle: Tensor) -> Tensor:
        data, row = self._pending.get(id(handle), (handle[:0], 0))
        super().upload(handle, data, row=row)
        return super().download(handle)


@fault("memory-object-new", "memory() makes another backend each time", "api.stable_objects")
def memory_object_new(platform: MutantPlatform) -> None:
    platform.memory = Memory  # type: ignore[method-assign]


@fault("upload-without-row", "upload() has no parameter `row`", "api.signatures")
def upload_without_row(platform: MutantPlatform) -> None:
    class WithoutRow(Memory):
        def upload(self, handle: Tensor, data: Tensor) -> None:  # type: ignore[override]
            super().upload(handle, data)

    platform.memory_backend = WithoutRow()
