"""What ships with the contract for platforms whose tensors are torch's: memory, reference kernels and attention.

A new platform returns these and replaces them one by one with what it does better.
"""

from __future__ import annotations

import math
import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core import ops
from core.errors import OutOfDeviceMemory, Unsupported
from core.platform import (
    AttentionBackend,
    AttentionQuery,
    Bindings,
    Executable,
    Kernel,
    KernelTable,
    KVLayout,
    MemoryBackend,
    MemoryInfo,
    QuantizedRows,
    Support,
)
from core.program import OpCall, Storage, Value
from core.quantization import SCHEMES, block_inputs, dequantized, quantized
from core.types import DType

#: Bytes from which an allocation is first held against what is free. Asking costs about a millisecond, and hosts
#: that overcommit kill a process that takes too much where torch would have raised.
_CHECKED_FROM = 16 << 20

#: Bytes from which host memory is mapped for a tensor alone: two huge pages of most systems.
_MAPPED_FROM = 4 << 20

#: Step shapes that the eager executable keeps its calls of.
_SHAPES_KEPT = 32


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's element type of that name."""
    found: torch.dtype = getattr(torch, dtype.value)
    return found


class TorchMemory(MemoryBackend):
    """Tensors of one torch device. `info` tells the device's memory, which torch knows only for some; it is asked by
    `info()`, and before an allocation of 16 MiB or more."""

    def __init__(self, device: str, info: Callable[[], MemoryInfo]) -> None:
        self._device = torch.device(device)
        self._info = info
        self._held: dict[int, tuple[Any, str]] = {}  # by id: the handle is kept, so its id stays its own
        self._parts: dict[int, Sequence[QuantizedRows]] = {}  # of the weights that were quantised, by id

    def info(self) -> MemoryInfo:
        """Total and free bytes now."""
        return self._info()

    def alloc_size(self, shape: Sequence[int], dtype: DType) -> int:
        """Bytes of the elements: torch's allocation is aligned, not rounded."""
        return math.prod(shape) * dtype.itemsize

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Any:
        """A zeroed tensor. On the host a large one comes from the system as it is first written, in huge pages where
        there are any: a KV cache of gigabytes costs nothing to start with.
        """
        return self.hold(
            self.alloc_size(shape, dtype),
            usage,
            f"{list(shape)} {dtype}",
            lambda: self.make_handle(tuple(shape), dtype, usage),
        )

    def hold(self, size: int, usage: str, what: str, make: Callable[[], Any]) -> Any:
        """The handle that `make` gives, of `size` bytes, held from now on. Raises OutOfDeviceMemory, which says `what`
        the handle was to be; `make` may raise what `make_handle` may."""
        if size >= _CHECKED_FROM and size > (free := self.info().free):
            raise OutOfDeviceMemory(f"{usage}: {size} bytes are wanted for {what} and {free} are free")
        try:
            handle = make()
        except (RuntimeError, OSError) as error:  # torch's out-of-memory errors are the former
            raise OutOfDeviceMemory(f"{usage}: {size} bytes for {what}: {error}") from error
        self._held[id(handle)] = (handle, usage)
        return handle

    def make_handle(self, shape: tuple[int, ...], dtype: DType, usage: str) -> Any:
        """The zeroed handle of `alloc`. A platform with handles of its own gives them here; they need `nbytes`. Raises
        RuntimeError or OSError where there is no room."""
        del usage
        size = math.prod(shape) * dtype.itemsize
        if self._device.type == "cpu" and size >= _MAPPED_FROM:
            return _mapped(size).view(torch_dtype(dtype)).view(shape)
        return torch.zeros(shape, dtype=torch_dtype(dtype), device=self._device)

    def free(self, handle: Any) -> None:
        """Give a tensor back. Raises ValueError on one that was not allocated here, or is already free."""
        if self._held.pop(id(handle), None) is None:
            raise ValueError("this tensor is not held by the memory backend: it was freed before, or never allocated")
        self._parts.pop(id(handle), None)

    def upload(self, handle: Any, data: Tensor, *, row: int = 0) -> None:
        """Copy `data` into rows `row …`, converting the element type. Raises ValueError if it does not fit."""
        target = handle[row : row + data.shape[0]]
        if target.shape != data.shape:
            raise ValueError(f"{list(data.shape)} does not fit rows {row} … of {list(handle.shape)}")
        for rows, scheme in self._spans(handle, row, len(data)):
            part = data[rows.start - row : rows.stop - row]
            handle[rows].copy_(part if scheme is None else quantized(part, scheme))

    def download(self, handle: Any) -> Tensor:
        """The contents on the host; the tensor itself where the device is the host."""
        found: Tensor = handle.cpu()
        return found

    def host_view(self, handle: Any) -> Tensor | None:
        """The tensor itself where the device is the host; None for a platform's own kind of handle."""
        return handle if isinstance(handle, Tensor) and handle.device.type == "cpu" else None

    def in_use(self) -> Mapping[str, int]:
        """Bytes held now, by usage."""
        totals: dict[str, int] = {}
        for handle, usage in self._held.values():
            totals[usage] = totals.get(usage, 0) + handle.nbytes
        return totals

    # The schemes' meaning, for devices that have no kernels for them yet: a weight is quantised, and what it then reads
    # as is kept. It loses what the scheme loses, and takes the memory of its dtype.

    def quantized_size(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> int:
        """Bytes of the elements in `dtype`."""
        del parts
        return self.alloc_size(shape, dtype)

    def alloc_quantized(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> Any:
        """A tensor, whose rows are quantised as they are uploaded. Raises Unsupported where blocks do not divide rows."""
        check_parts(shape, parts)
        handle = self.alloc(shape, dtype, "weights")
        self._parts[id(handle)] = tuple(parts)
        return handle

    def upload_blocks(self, handle: Any, blocks: Tensor, scheme: str, *, row: int = 0) -> None:
        """Keep what the blocks stand for. Raises ValueError if they do not fit."""
        data = dequantized(blocks, scheme)
        if any(kept != scheme for _, kept in self._spans(handle, row, len(data))):
            raise ValueError(f"rows {row} … {row + len(data)} are not kept in {scheme}")
        if tuple(data.shape[1:]) != tuple(handle.shape[1:]) or row + len(data) > len(handle):
            raise ValueError(f"{list(data.shape)} does not fit rows {row} … of {list(handle.shape)}")
        handle[row : row + len(data)].copy_(data)

    def _spans(self, handle: Any, row: int, count: int) -> Iterator[tuple[slice, str | None]]:
        """`count` rows from `row` on, cut where the scheme changes."""
        parts = self._parts.get(id(handle))
        if parts is None:
            yield slice(row, row + count), None
            return
        start = 0
        for part in parts:
            stop = start + part.rows
            if max(start, row) < min(stop, row + count):
                yield slice(max(start, row), min(stop, row + count)), part.scheme
            start = stop


def check_parts(shape: Sequence[int], parts: Sequence[QuantizedRows]) -> None:
    """Whether a weight can have these parts. Raises Unsupported, or ValueError where their rows do not add up."""
    outputs, inputs = shape
    if sum(part.rows for part in parts) != outputs:
        raise ValueError(f"parts of {[part.rows for part in parts]} rows do not make the {outputs} of {list(shape)}")
    for scheme in {part.scheme for part in parts if part.scheme}:
        if scheme not in SCHEMES:
            raise Unsupported(f"weights in {scheme}", f"the schemes are {', '.join(SCHEMES)}")
        if inputs % block_inputs(scheme):
            raise Unsupported(
                f"weights in {scheme} of {inputs} inputs", f"its blocks are of {block_inputs(scheme)} inputs"
            )


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

    def export_blocks(self, cache: Sequence[Tensor], blocks: Sequence[int]) -> Tensor:
        """uint8 [len(blocks), bytes]: each block's planes, one after the other."""
        rows = [plane[list(blocks)].flatten(1).view(torch.uint8) for plane in cache]
        return torch.cat(rows, dim=1).cpu()

    def import_blocks(self, cache: Sequence[Tensor], blocks: Sequence[int], data: Tensor) -> None:
        """Raises ValueError for data of another layout."""
        sizes = [plane[0].nbytes for plane in cache]
        if tuple(data.shape) != (len(blocks), sum(sizes)):
            raise ValueError(f"{len(blocks)} blocks of {sum(sizes)} bytes are due, got {list(data.shape)}")
        for plane, part in zip(cache, data.split(sizes, dim=1), strict=True):
            plane[list(blocks)] = (
                part.contiguous().view(plane.dtype).view(len(blocks), *plane.shape[1:]).to(plane.device)
            )


# --- running a program op by op ------------------------------------------------------------------------------

Step = list[Callable[[], None]]


class EagerExecutable(Executable):
    """Binds the kernels to tensors once for each step shape and keeps the latest shapes: decode repeats a few."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._steps: OrderedDict[tuple[int, int], Step] = OrderedDict()

    def run(self, num_tokens: int, num_seqs: int) -> None:
        """Any shape within the limits."""
        shape = (num_tokens, num_seqs)
        step = self._steps.get(shape)
        if step is None:
            step = self._steps[shape] = bind_step(self._bindings, num_tokens, num_seqs)
            if len(self._steps) > _SHAPES_KEPT:
                self._steps.popitem(last=False)
        else:
            self._steps.move_to_end(shape)
        for call in step:
            call()


def bind_step(bindings: Bindings, num_tokens: int, num_seqs: int) -> Step:
    """The program's calls with their tensors, for one step shape."""
    tensors: dict[int, Any] = {}

    def tensor(value: Value | None) -> Any:
        if value is None:
            return None
        if value.index not in tensors:
            tensors[value.index] = bound_tensor(bindings, value, num_tokens, num_seqs)
        return tensors[value.index]

    def bind(call: OpCall) -> Callable[[], None]:
        arguments = [tensor(value) for value in (*call.inputs, *call.outputs)]
        return partial(bindings.kernels[call.op], *arguments, **call.attrs)

    return [bind(call) for call in bindings.program.calls]


def bound_tensor(bindings: Bindings, value: Value, num_tokens: int, num_seqs: int) -> Any:
    """The torch tensor (or the planes of a cache) that `value` is at this step shape."""
    if value.storage in (Storage.CACHE, Storage.WEIGHT):  # whole at every step shape, in the platform's own form
        return bindings.handle(value)
    owner = value.owner
    shape = owner.resolve(num_tokens, num_seqs)
    if owner.storage is Storage.ACTIVATION:
        whole = _arena_tensor(bindings, owner, shape)
    else:
        whole = bindings.handle(owner)[tuple(slice(size) for size in shape)]
    if value is owner:
        return whole
    width = value.shape[-1]
    assert isinstance(width, int), "a view's width is fixed when it is recorded"
    return whole[..., value.offset : value.offset + width]


def _arena_tensor(bindings: Bindings, value: Value, shape: tuple[int, ...]) -> torch.Tensor:
    count = value.dtype.itemsize
    for size in shape:
        count *= size
    start = bindings.offsets[value.index]
    memory: torch.Tensor = bindings.arena[start : start + count]
    return memory.view(torch_dtype(value.dtype)).view(shape)
