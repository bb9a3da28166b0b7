"""Level ops: device memory. Every persistent byte of the engine goes through it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.conformance.bounds import FLOATS
from core.conformance.buffers import same_bits
from core.conformance.failures import Broken, NotClaimed, expect
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.defaults import torch_dtype
from core.errors import OutOfDeviceMemory
from core.platform import MemoryBackend
from core.types import DType

#: Bytes: the widest vector of today's CPUs, and what their and every accelerator's kernels may assume.
ALIGNMENT = 64
_SHAPES = ((1,), (7,), (3, 5), (33, 17, 3), (5, 2, 16, 8))


def _dtypes(subject: Subject) -> list[DType]:
    """What the engine allocates: the declared types, indices and bytes."""
    declared = {*subject.capabilities.dtypes, *subject.capabilities.kv_dtypes, DType.INT32, DType.UINT8}
    return sorted(declared, key=str)


def _numbers(shape: tuple[int, ...], dtype: DType) -> Tensor:
    """Numbers that every type holds exactly and that differ from row to row."""
    return (torch.arange(math.prod(shape)) % 101).view(shape).to(torch_dtype(dtype))


@check("memory.zeroed", "ops", "a KV cache of leftovers is NaN on the first unlucky request")
def zeroed(subject: Subject) -> None:
    """alloc() gives zeros, also where something was before."""
    for dtype in _dtypes(subject):
        for shape in _SHAPES:
            for turn in ("at first", "after another use"):
                handle = subject.buffers.alloc(shape, dtype)
                found = subject.buffers.memory.download(handle)
                expect(not found.any(), f"alloc({list(shape)}, {dtype}) is not zero {turn}")
                subject.buffers.memory.upload(handle, torch.full(shape, 77).to(torch_dtype(dtype)))
                subject.buffers.free()


@check("memory.round_trip", "ops", "weights, inputs and logits go this way, in rows and in other element types")
def round_trip(subject: Subject) -> None:
    """What upload() puts, whole or from a row on, download() gives, in the handle's type."""
    memory = subject.buffers.memory
    for dtype in _dtypes(subject):
        for shape in _SHAPES:
            handle, data = subject.buffers.alloc(shape, dtype), _numbers(shape, dtype)
            memory.upload(handle, data)
            found = memory.download(handle)
            expect(found.dtype == data.dtype, f"download() of {dtype} gives {found.dtype}")
            expect(same_bits(found, data), f"download() of {list(shape)} {dtype} is not what upload() put there")
    _check_rows(subject)
    _check_conversion(subject)


@check("memory.host_view", "ops", "a view that is a copy leaves the device with the inputs of the step before")
def host_view(subject: Subject) -> None:
    """What is written to a handle's host view, where there is one, download() gives, and what upload() puts it shows."""
    memory, seen = subject.buffers.memory, 0
    for dtype in _dtypes(subject):
        for shape in _SHAPES:
            handle, data = subject.buffers.alloc(shape, dtype), _numbers(shape, dtype)
            view = memory.host_view(handle)
            if view is None:
                continue
            seen += 1
            expect(tuple(view.shape) == shape, f"host_view() of {list(shape)} is {list(view.shape)}")
            view.copy_(data)
            expect(same_bits(memory.download(handle), data), f"host_view() of {dtype} is not the handle's memory")
            memory.upload(handle, data.flip(0))
            expect(same_bits(view, data.flip(0)), f"host_view() of {dtype} does not show what upload() put")
    if not seen:
        raise NotClaimed("the host cannot reach this memory: host_view() gives None")


def _check_rows(subject: Subject) -> None:
    memory, dtype = subject.buffers.memory, subject.dtype
    handle, wanted = subject.buffers.alloc((9, 5), dtype), _numbers((9, 5), dtype)
    for start, stop in ((4, 9), (0, 1), (1, 4)):
        memory.upload(handle, wanted[start:stop], row=start)
    expect(same_bits(memory.download(handle), wanted), "upload(row=…) of rows 4:9, 0:1 and 1:4 gave other contents")
    try:
        memory.upload(handle, wanted, row=1)
    except ValueError:
        expect(same_bits(memory.download(handle), wanted), "an upload() that does not fit wrote all the same")
    else:
        raise Broken("upload() of 9 rows to rows 1 … of 9 raised no ValueError")


def _check_conversion(subject: Subject) -> None:
    memory = subject.buffers.memory
    for source in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
        for target in sorted(set(subject.capabilities.dtypes) & set(FLOATS), key=str):
            data = _numbers((6, 7), source) * 0.25
            handle = subject.buffers.alloc((6, 7), target)
            memory.upload(handle, data)
            wanted = data.to(torch_dtype(target))
            expect(same_bits(memory.download(handle), wanted), f"upload() of {source} to {target} does not convert it")
    wide = torch.arange(12, dtype=torch.int64).view(3, 4)
    handle = subject.buffers.alloc((3, 4), DType.INT32)
    memory.upload(handle, wide)
    expect(same_bits(memory.download(handle), wide.int()), "upload() of int64 to int32 does not convert it")


@check("memory.fresh_reads", "ops", "the logits of the last step in place of this one's make fluent nonsense")
def fresh_reads(subject: Subject) -> None:
    """download() gives what is there now, and uploaded data may change afterwards without changing the device."""
    memory, dtype = subject.buffers.memory, subject.dtype
    handle = subject.buffers.alloc((4, 3), dtype)
    for value in (1, 2, 3):
        data = torch.full((4, 3), value).to(torch_dtype(dtype))
        memory.upload(handle, data)
        memory.synchronize()
        data.fill_(99)
        found = memory.download(handle)
        expect(bool((found == value).all()), f"after upload {value} of three, download() gives {found.flatten()[0]:g}")


@check("memory.aligned", "ops", "vector and tensor-unit loads of whole cache lines fault or crawl otherwise")
def aligned(subject: Subject) -> None:
    """Handles that are tensors begin at a multiple of 64 bytes and are contiguous."""
    for dtype in _dtypes(subject):
        for shape in _SHAPES:
            handle = subject.buffers.alloc(shape, dtype)
            if isinstance(handle, Tensor):
                offset = handle.data_ptr() % ALIGNMENT
                expect(offset == 0, f"alloc({list(shape)}, {dtype}) begins {offset} bytes after a multiple of 64")
                expect(handle.is_contiguous(), f"alloc({list(shape)}, {dtype}) is not contiguous")


@check("memory.accounted", "ops", "the memory plan that users see before loading is made of these numbers")
def accounted(subject: Subject) -> None:
    """alloc_size() is what in_use() grows by, under the given usage, and what free() takes back."""
    memory = subject.platform.memory()
    baseline = dict(memory.in_use())
    for dtype in _dtypes(subject):
        for shape in _SHAPES:
            for usage in ("weights", "kv", "activations", "inputs"):
                _check_account(memory, shape, dtype, usage)
    left = {usage: size for usage, size in memory.in_use().items() if size != baseline.get(usage, 0)}
    expect(not left, f"in_use() is {left} after everything was freed")


def _check_account(memory: MemoryBackend, shape: tuple[int, ...], dtype: DType, usage: str) -> None:
    before = memory.in_use().get(usage, 0)
    size = memory.alloc_size(shape, dtype)
    least = math.prod(shape) * dtype.itemsize
    expect(size >= least, f"alloc_size({list(shape)}, {dtype}) is {size}, less than its {least} bytes")
    handle = memory.alloc(shape, dtype, usage)
    grown = memory.in_use().get(usage, 0) - before
    memory.free(handle)
    back = memory.in_use().get(usage, 0) - before
    expect(grown == size, f"alloc({list(shape)}, {dtype}) took {grown} bytes of {usage}, alloc_size() says {size}")
    expect(back == 0, f"free() of {list(shape)} {dtype} left {back} bytes of {usage}")


#: Rounds of the search for a leak. Others take and give host memory meanwhile; a leak shows in every round.
_ROUNDS, _TURNS = 6, 64


@check("memory.no_leak", "ops", "a server that restarts engines for months has no other memory than this")
def no_leak(subject: Subject) -> None:
    """Device memory is back after many allocations of a size that would be missed."""
    memory, block = subject.platform.memory(), (256, 1024)
    size = memory.alloc_size(block, DType.FLOAT32)
    now = memory.info()
    expect(0 <= now.free <= now.total, f"memory().info() has {now.free} of {now.total} bytes free")
    for _ in range(_ROUNDS):
        lost = _lost(memory, block)
        if lost < _TURNS * size // 2:
            return
    raise Broken(f"{_TURNS} times alloc() and free() of {size} bytes took {lost} bytes for good")


def _lost(memory: MemoryBackend, block: tuple[int, ...]) -> int:
    """Bytes fewer that are free after allocating and freeing, the memory written so that it is really taken."""
    before = memory.info().free
    for _ in range(_TURNS):
        handle = memory.alloc(block, DType.FLOAT32, "kv")
        memory.upload(handle, torch.ones(block))
        memory.free(handle)
        del handle
    memory.synchronize()
    return before - memory.info().free


@check("memory.out_of_memory", "ops", "an allocation that is refused must leave a server that says so and goes on")
def out_of_memory(subject: Subject) -> None:
    """Too much raises OutOfDeviceMemory, and the next, small allocation works."""
    memory = subject.buffers.memory
    held = dict(memory.in_use())
    for count in (4 * memory.info().total, 1 << 60):
        try:
            memory.alloc((count,), DType.UINT8, "kv")
        except OutOfDeviceMemory:
            pass
        except (Exception, SystemExit) as error:
            raise Broken(
                f"alloc() of {count} bytes raised {type(error).__name__} in place of OutOfDeviceMemory"
            ) from error
        else:
            raise Broken(f"alloc() of {count} bytes of {memory.info().total} raised nothing")
        expect(dict(memory.in_use()) == held, "an allocation that failed is counted in in_use()")
    handle = subject.buffers.alloc((16, 16), subject.dtype)
    memory.upload(handle, torch.ones(16, 16))
    expect(bool((memory.download(handle) == 1).all()), "after a refused allocation the next one does not work")


@check("memory.double_free", "ops", "freeing twice hands one piece of memory to two owners, and corrupts both")
def double_free(subject: Subject) -> None:
    """free() of what is free already, or was never allocated, raises ValueError."""
    memory = subject.platform.memory()
    first, second = (memory.alloc((8, 8), DType.FLOAT32, "kv") for _ in range(2))
    memory.free(first)
    stranger = torch.zeros(8, 8)
    for handle, what in ((first, "a handle that was freed before"), (stranger, "a tensor it never allocated")):
        try:
            memory.free(handle)
        except ValueError:
            continue
        raise Broken(f"free() took {what}")
    memory.free(second)
