"""Triton's kernels on host memory. Any step shape, as the kernels themselves take them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec
import torch

from core.config import Config
from core.defaults import TorchMemory
from core.platform import (
    AttentionBackend,
    Capabilities,
    DeviceInfo,
    KernelTable,
    MemoryBackend,
    MemoryInfo,
    Override,
    Plan,
    Platform,
)
from platforms._shared.kernels import GivenKernels
from platforms._shared.triton.attention import FLOATS, KV_DTYPES, TritonAttention
from platforms._shared.triton.ops import dense_kernels
from platforms._shared.triton.tiles import INTERPRETER

KV_BYTES = 1 << 20


class InterpretedPlatform(Platform):
    """Every kernel of `platforms._shared.triton` that an op has."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._memory = TorchMemory("cpu", _memory_info)

    def devices(self) -> Sequence[DeviceInfo]:
        return (DeviceInfo(index=0, name="interpreter"),)

    def capabilities(self) -> Capabilities:
        return Capabilities(dtypes=FLOATS, kv_dtypes=KV_DTYPES, deterministic=True, kv_transfer=True)

    def plan(self, config: Config) -> Plan:
        """What is asked for, in a cache that is enough for tiny models."""
        memory_bytes = config.cache.memory_bytes or KV_BYTES
        planned = msgspec.structs.replace(
            config, cache=msgspec.structs.replace(config.cache, memory_bytes=memory_bytes)
        )
        override = Override(option="kv_cache_memory", value=str(KV_BYTES), reason="enough for tiny models")
        return Plan(config=planned, overrides=() if config.cache.memory_bytes else (override,))

    def memory(self) -> MemoryBackend:
        return self._memory

    def kernels(self) -> KernelTable:
        return GivenKernels(dense_kernels(INTERPRETER))

    def attention(self) -> Sequence[AttentionBackend]:
        return (TritonAttention(INTERPRETER, "cpu"),)


def _memory_info() -> MemoryInfo:
    page = os.sysconf("SC_PAGE_SIZE")
    return MemoryInfo(os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page)
