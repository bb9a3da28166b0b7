"""What ships with the contract for platforms whose tensors are torch's: memory, reference kernels and attention.

A new platform returns these and replaces them one by one with what it does better.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from core import ops
from core.errors import OutOfDeviceMemory, Unsupported
from core.platform import (
    AttentionBackend,
    AttentionQuery,
    Kernel,
    KernelTable,
    KVLayout,
    MemoryBackend,
    MemoryInfo,
    Support,
)
from core.types import DType

#: Bytes from which an allocation is first held against what is free. Asking costs about a millisecond, and hosts
#: that overcommit kill a process that takes too much where torch would have raised.
_CHECKED_FROM = 16 << 20


#: Bytes from which host memory is mapped for a tensor alone: two huge pages of most systems.
_MAPPED_FROM = 4 << 20


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's element type of that name."""
    found: torch.dtype = getattr(torch, dtype.value)
    return found


class TorchMemory(MemoryBackend):
    """Tensors of one torch device. `info` tells the device's memory, which torch knows only for some."""

    def __init__(self, device: str, info: Callable[[], MemoryInfo]) -> None:
        self._device = torch.device(device)
        self._info = info
        self._held: dict[int, tuple[Tensor, str]] = {}  # by id: the tensor is kept, so its id stays its own

    def info(self) -> MemoryInfo:
        """Total and free bytes now."""
        return self._info()

    def alloc_size(self, shape: Sequence[int], dtype: DType) -> int:
        """Bytes of the elements: torch's allocation is aligned, not rounded."""
        return math.prod(shape) * dtype.itemsize

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Tensor:
        """A zeroed tensor. On the host a large one comes from the system as it is first written, in huge pages where
        there are any: a KV cache of gigabytes costs nothing to start with.
        """
        size = self.alloc_size(shape, dtype)
        if size >= _CHECKED_FROM and size > (free := self.info().free):
            raise OutOfDeviceMemory(f"{usage}: {size} bytes are wanted for {list(shape)} {dtype} and {free} are free")
        try:
            if self._device.type == "cpu" and size >= _MAPPED_FROM:
                handle = _mapped(size).view(torch_dtype(dtype)).view(tuple(shape))
            else:
                handle = torch.zeros(tuple(shape), dtype=torch_dtype(dtype), device=self._device)
        except (RuntimeError, OSError) as error:  # torch's out-of-memory errors are the former
            raise OutOfDeviceMemory(f"{usage}: {size} bytes for {list(shape)} {dtype}: {error}") from error
        self._held[id(handle)] = (handle, usage)
        return handle

    def free(self, handle: Tensor) -> None:
        """Give a tensor back. Raises ValueError on one that was not allocated here, or is already free."""
        if self._held.pop(id(handle), None) is None:
            raise ValueError("this tensor is not held by the memory backend: it was freed before, or never allocated")

    def upload(self, handle: Tensor, data: Tensor, *, row: int = 0) -> None:
        """Copy `data` into rows `row …`, converting the element type. Raises ValueError if it does not fit."""
        target = handle[row : row + data.shape[0]]
        if target.shape != data.shape:
            raise ValueError(f"{list(data.shape)} does not fit rows {row} … of {list(handle.shape)}")
        target.copy_(data)

    def download(self, handle: Tensor) -> Tensor:
        """The contents on the host; the tensor itself where the device is the host."""
        return handle.cpu()

    def in_use(self) -> Mapping[str, int]:
        """Bytes held now, by usage."""
        totals: dict[str, int] = {}
        for tensor, usage in self._held.values():
            totals[usage] = totals.get(usage, 0) + tensor.nbytes
        return totals


def _mapped(size: int) -> Tensor:
    """A uint8 tensor [size] over anonymous memory, which goes when the tensor goes."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class ReferenceKernels(KernelTable):
    """The op table's own torch implementations, with the kernels in `faster` before them."""

    def __init__(self, faster: Mapping[str, Kernel] | None = None) -> None:
        own = {op: kernel for op, kernel in ops.REFERENCE.items() if op not in ops.ATTENTION_OPS}
        self._kernels: dict[str, Kernel] = {**own, **(faster or {})}

    def supports(self, op: str) -> Support:
        """Whether `op` is in the table."""
        return Support(True) if op in self._kernels else Support(False, f"there is no kernel for {op!r}")

    def get(self, op: str) -> Kernel:
        """The kernel. Raises Unsupported."""
        if op not in self._kernels:
            raise Unsupported(f"op {op}", self.supports(op).reason)
        return self._kernels[op]


class ReferenceAttention(AttentionBackend):
    """The op table's own attention. Planes are keys and values, blocks [num_kv_heads, block_size, head_dim].

    A backend of the same layout can inherit from it and replace `supports`, `write_kv` and `forward`.
    """

    name = "reference"

    def supports(self, query: AttentionQuery) -> Support:
        """Any shape in which the query heads divide over the KV heads."""
        if query.num_heads % query.num_kv_heads:
            return Support(False, f"{query.num_heads} heads cannot share {query.num_kv_heads} KV heads evenly")
        return Support(True)

    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        """Two planes of [num_kv_heads, block_size, head_dim] blocks."""
        return KVLayout((query.num_kv_heads, query.block_size, query.head_dim), query.kv_dtype)

    def write_kv(self, key: Any, value: Any, cache: Sequence[Any], slot_mapping: Any) -> None:
        """The kernel of op `kv_write`."""
        ops.kv_write_reference(key, value, cache, slot_mapping)

    def forward(self, *args: Any, **attrs: Any) -> None:
        """The kernel of op `attention`."""
        ops.attention_reference(*args, **attrs)

    def copy_blocks(self, cache: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> None:
        """One block after the other: a pair may read what an earlier one wrote."""
        for plane in cache:
            for source, destination in pairs:
                plane[destination].copy_(plane[source])
