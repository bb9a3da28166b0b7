"""The simulated device's memory: bytes are counted, none is held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config import Config
from core.errors import OutOfDeviceMemory, Unsupported
from core.platform import MemoryBackend, MemoryInfo, MemoryPlan
from core.program import OpProgram, Storage, Value
from core.recording import RecordedModel
from core.types import DType
from platforms.sim.profile import Profile


@dataclass(frozen=True, eq=False)
class SimTensor:
    """A handle: what a tensor would be, without its contents."""

    shape: tuple[int, ...]
    dtype: DType


class SimMemory(MemoryBackend):
    """Of one device. Contents cannot be written or read, since there are none."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._held: dict[int, tuple[SimTensor, str]] = {}
        self._used = 0

    def info(self) -> MemoryInfo:
        """The whole memory, and what of its usable part is left."""
        return MemoryInfo(self._profile.memory_bytes, self._profile.usable_memory - self._used)

    def alloc_size(self, shape: Sequence[int], dtype: DType) -> int:
        """Bytes of the elements."""
        return math.prod(shape) * dtype.itemsize

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> SimTensor:
        """A handle. Raises OutOfDeviceMemory."""
        size, free = self.alloc_size(shape, dtype), self.info().free
        if size > free:
            raise OutOfDeviceMemory(f"{usage}: {size} bytes are wanted for {list(shape)} {dtype} and {free} are free")
        handle = SimTensor(tuple(shape), dtype)
        self._held[id(handle)] = (handle, usage)
        self._used += size
        return handle

    def free(self, handle: SimTensor) -> None:
        """Give a handle back. Raises ValueError on one that was not allocated here, or is already free."""
        if self._held.pop(id(handle), None) is None:
            raise ValueError("this tensor is not held by the memory backend: it was freed before, or never allocated")
        self._used -= self.alloc_size(handle.shape, handle.dtype)

    def upload(self, handle: SimTensor, data: Any, *, row: int = 0) -> None:
        """Raises Unsupported."""
        raise Unsupported("writing to simulated memory", "it holds sizes and no contents")

    def download(self, handle: SimTensor) -> Any:
        """Raises Unsupported."""
        raise Unsupported("reading simulated memory", "it holds sizes and no contents")

    def in_use(self) -> Mapping[str, int]:
        """Bytes held now, by usage."""
        totals: dict[str, int] = {}
        for tensor, usage in self._held.values():
            totals[usage] = totals.get(usage, 0) + self.alloc_size(tensor.shape, tensor.dtype)
        return totals


# --- planning ------------------------------------------------------------------------------------------------


def plan_memory(model: RecordedModel, config: Config, profile: Profile) -> MemoryPlan:
    """Bytes by use on one device, from shapes; the KV cache as large as `config` grants, and as requests can use."""
    limits = config.scheduler.max_num_batched_tokens, config.scheduler.max_num_seqs
    program, block_size = model.program, config.cache.block_size
    block_bytes = sum(
        2 * spec.num_kv_heads * spec.head_dim * block_size * config.cache.dtype.itemsize
        for spec in model.attention_layers
    )
    useful = limits[1] * model.max_blocks + 1
    return MemoryPlan(
        weights=sum(_bytes(parameter.value, (0, 0)) for parameter in model.parameters),
        activations=_activation_bytes(program, limits),
        inputs=sum(_bytes(v, limits) for v in (*program.of(Storage.INPUT), *program.of(Storage.OUTPUT))),
        kv_block_bytes=block_bytes,
        num_blocks=min((config.cache.memory_bytes or 0) // block_bytes, useful),
        block_size=block_size,
        free=profile.usable_memory,
    )


def _bytes(value: Value, limits: tuple[int, int]) -> int:
    return math.prod(value.resolve(*limits)) * value.dtype.itemsize


def _activation_bytes(program: OpProgram, limits: tuple[int, int]) -> int:
    """The most that live at once: each from the call that writes it to the last that reads it."""
    last: dict[int, int] = {}
    for position, call in enumerate(program.calls):
        last.update({v.owner.index: position for v in (*call.inputs, *call.outputs) if v is not None})
    live: dict[int, int] = {}
    most = 0
    for position, call in enumerate(program.calls):
        live.update({v.index: _bytes(v, limits) for v in call.outputs if v.storage is Storage.ACTIVATION})
        most = max(most, sum(live.values()))
        live = {index: size for index, size in live.items() if last[index] > position}
    return most
