"""Fills a model's parameters: checkpoint tensors to device memory, by slice where the model is sharded."""

from __future__ import annotations

import difflib
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from core.errors import WeightError
from core.layers.base import Parameter, ShardSpec, Source
from core.platform import MemoryBackend, Progress
from core.types import DType
from core.weights.base import WeightReader

_DUMMY_STD = 0.02


def load_parameters(
    parameters: Sequence[Parameter], reader: WeightReader, memory: MemoryBackend, progress: Progress
) -> dict[int, Any]:
    """A handle for each parameter, by Value.index, filled from the checkpoint.

    Raises WeightError where a tensor is missing or has another shape than the model's.
    """
    handles: dict[int, Any] = {}
    total = sum(len(parameter.sources) for parameter in parameters)
    done = 0
    for parameter in parameters:
        handle = handles[parameter.value.index] = _allocate(parameter, memory)
        for source in parameter.sources:
            memory.upload(handle, _read(parameter, source, reader), row=source.row)
            reader.release(source.name)  # or the mapped file would stay in memory beside the copy
            done += 1
            progress("loading weights", done / total)
    return handles


def dummy_parameters(
    parameters: Sequence[Parameter], memory: MemoryBackend, progress: Progress, *, seed: int
) -> dict[int, Any]:
    """The same with random weights of standard deviation 0.02 (norms: one), the same for every run of a seed."""
    handles: dict[int, Any] = {}
    for done, parameter in enumerate(parameters, 1):
        handle = handles[parameter.value.index] = _allocate(parameter, memory)
        name, shape = parameter.value.name, parameter.value.resolve(0, 0)
        generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
        if parameter.sources:
            ones = len(shape) == 1 and "norm" in name
            data = torch.ones(shape) if ones else torch.randn(shape, generator=generator) * _DUMMY_STD
            memory.upload(handle, data)
        progress("making weights", done / len(parameters))
    return handles


def _allocate(parameter: Parameter, memory: MemoryBackend) -> Any:
    value = parameter.value
    handle = memory.alloc(value.resolve(0, 0), value.dtype, "weights")
    if parameter.constant is not None:
        memory.upload(handle, torch.tensor(parameter.constant, dtype=torch.float32))
    return handle


def _read(parameter: Parameter, source: Source, reader: WeightReader) -> torch.Tensor:
    """This rank's slice of one checkpoint tensor, as a host torch tensor in the stored type."""
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
    shard = parameter.shard
    rows = shard.span(expected[0]) if shard.dim == 0 and shard.world > 1 else None
    data = as_torch(reader.read(source.name, rows), meta.dtype)
    if shard.dim == 1 and shard.world > 1:
        data = data[:, shard.span(expected[1])]
    return data


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
