"""Fills a model's parameters: checkpoint tensors to device memory, by slice where the model is sharded."""

from __future__ import annotations

import difflib
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from core.errors import WeightError
from core.layers.base import Parameter, ShardSpec, Source
from core.platform import ONLINE_SCHEMES, MemoryBackend, Progress
from core.types import DType
from core.weights.base import WeightReader
from core.weights.placement import Parts, scheme_of

_DUMMY_STD = 0.02
_DRAWN = 1_000_003  # a prime: no two rows of a matrix begin at the same number

#: Weights that are on the host at once, as float32 16 MiB: a table of gigabytes is never there whole.
_CHUNK = 4 << 20
_CHUNK_ROWS = 64  # a chunk begins at a multiple of these, where the device's panels do


def matched_names(parameters: Sequence[Parameter], tensors: Mapping[str, Any]) -> Sequence[Parameter]:
    """The parameters with the names that the checkpoint has.

    A model that was saved without its head, as embedding models are, lacks the first word of each name ("model.", "bert.").
    """
    names = [source.name for parameter in parameters for source in parameter.sources]
    if any(name in tensors for name in names):
        return parameters
    short = {name: name.partition(".")[2] for name in names}
    return [
        replace(p, sources=tuple(replace(source, name=short[source.name]) for source in p.sources)) for p in parameters
    ]


def load_parameters(
    parameters: Sequence[Parameter],
    reader: WeightReader,
    memory: MemoryBackend,
    progress: Progress,
    parts: Mapping[int, Parts] = MappingProxyType({}),
) -> dict[int, Any]:
    """A handle for each parameter, by Value.index, filled from the checkpoint; `parts` of those that are quantised.

    Raises WeightError where a tensor is missing or has another shape than the model's.
    """
    handles: dict[int, Any] = {}
    total = sum(len(parameter.sources) for parameter in parameters)
    done = 0
    for parameter in parameters:
        own = parts.get(parameter.value.index, ())
        handle = handles[parameter.value.index] = _allocate(parameter, memory, own)
        for source in parameter.sources:
            _check(parameter, source, reader)
            _fill(parameter, source, reader, memory, handle, scheme_of(own, source.row))
            reader.release(source.name)  # or the mapped file would stay in memory beside the copy
            done += 1
            progress("loading weights", done / total)
    return handles


def dummy_parameters(
    parameters: Sequence[Parameter],
    memory: MemoryBackend,
    progress: Progress,
    parts: Mapping[int, Parts] = MappingProxyType({}),
    *,
    seed: int,
) -> dict[int, Any]:
    """The same with random weights of standard deviation 0.02 (norms: one), the same for every run of a seed."""
    handles: dict[int, Any] = {}
    for done, parameter in enumerate(parameters, 1):
        index, name, shape = parameter.value.index, parameter.value.name, parameter.value.resolve(0, 0)
        handle = handles[index] = _allocate(parameter, memory, parts.get(index, ()))
        if parameter.sources:
            ones = len(shape) == 1 and "norm" in name.lower() and name.endswith("weight")
            drawn = torch.ones(1) if ones else _draw(math.prod(shape), seed ^ zlib.crc32(name.encode()))
            for rows in _chunks(*shape):
                memory.upload(handle, _dummy_rows(drawn, rows, shape[1:]), row=rows.start)
        progress("making weights", done / len(parameters))
    return handles


def _draw(count: int, seed: int) -> torch.Tensor:
    """Random numbers for `count` weights, which begin again after the first million."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(min(count, _DRAWN), generator=generator).mul_(_DUMMY_STD)


def _dummy_rows(drawn: torch.Tensor, rows: slice, columns: tuple[int, ...]) -> torch.Tensor:
    shape = (rows.stop - rows.start, *columns)
    count, start = math.prod(shape), rows.start * math.prod(columns) % len(drawn)
    return drawn.roll(-start).repeat(-(-count // len(drawn)))[:count].view(shape)


def _allocate(parameter: Parameter, memory: MemoryBackend, parts: Parts) -> Any:
    value = parameter.value
    shape = value.resolve(0, 0)
    if parts:
        return memory.alloc_quantized(shape, value.dtype, parts)
    handle = memory.alloc(shape, value.dtype, "weights")
    if parameter.constant is not None:
        memory.upload(handle, torch.tensor(parameter.constant, dtype=torch.float32))
    return handle


def _chunks(rows: int, columns: int = 1) -> Iterator[slice]:
    step = max(_CHUNK // max(columns, 1) // _CHUNK_ROWS, 1) * _CHUNK_ROWS
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _check(parameter: Parameter, source: Source, reader: WeightReader) -> None:
    """Raises WeightError where the checkpoint's tensor is missing or has another shape than the model's."""
    tensors = reader.tensors()
    meta = tensors.get(source.name)
    if meta is None:
        near = difflib.get_close_matches(source.name, list(tensors), n=1)
        raise WeightError(
            reader.path, f"the model needs this tensor{f'; nearest is {near[0]!r}' if near else ''}", tensor=source.name
        )
    expected = _whole_shape(parameter, source)
    if tuple(meta.shape) != expected:
        raise WeightError(
            reader.path, f"shape {list(meta.shape)}, the model needs {list(expected)}", tensor=source.name
        )


def _fill(
    parameter: Parameter, source: Source, reader: WeightReader, memory: MemoryBackend, handle: Any, scheme: str | None
) -> None:
    """This rank's slice of one checkpoint tensor, chunk by chunk, as its blocks or in the stored type."""
    shard = parameter.shard
    first = shard.rank * source.rows if shard.dim == 0 else 0
    dtype = reader.tensors()[source.name].dtype
    for rows in _chunks(source.rows, *parameter.value.resolve(0, 0)[1:]):
        row, wanted = source.row + rows.start, slice(first + rows.start, first + rows.stop)
        if scheme is not None and scheme not in ONLINE_SCHEMES:
            blocks = _columns(reader.blocks(source.name, wanted), shard)
            memory.upload_blocks(handle, as_torch(np.ascontiguousarray(blocks), DType.UINT8), scheme, row=row)
        else:
            memory.upload(handle, as_torch(_columns(reader.read(source.name, wanted), shard), dtype), row=row)


def _columns(array: np.ndarray[Any, Any], shard: ShardSpec) -> np.ndarray[Any, Any]:
    """This rank's columns; of blocks too, which were planned so that ranks part between two of them."""
    return array[:, shard.span(array.shape[1])] if shard.dim == 1 and shard.world > 1 else array


def _whole_shape(parameter: Parameter, source: Source) -> tuple[int, ...]:
    """What the checkpoint's tensor must measure, from the slice that this rank holds."""
    shard: ShardSpec = parameter.shard
    rows = source.rows * (shard.world if shard.dim == 0 else 1)
    columns = parameter.value.resolve(0, 0)[1:]
    return (rows, *(size * (shard.world if shard.dim == 1 else 1) for size in columns))


def as_torch(array: np.ndarray[Any, Any], dtype: DType) -> torch.Tensor:
    """A tensor over the array's memory, to be read only; bfloat16, which numpy lacks, comes as uint16 bits."""
    bits = dtype is DType.BFLOAT16 and array.dtype == np.uint16
    with warnings.catch_warnings():
        # The array may be a view of the mapped file, which torch cannot mark as read-only.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array.view(np.int16) if bits else array)
    return tensor.view(torch.bfloat16) if bits else tensor


def unused_tensors(parameters: Sequence[Parameter], tensors: Mapping[str, Any]) -> list[str]:
    """Checkpoint tensors that no parameter reads: worth a warning, since something may be missing from the model."""
    used = {source.name for parameter in parameters for source in parameter.sources}
    return sorted(name for name in tensors if name not in used)
