"""The platform: what it can do, how it runs a configuration, and the parts it is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence

from msgspec.structs import replace

from core.config import Config
from core.defaults import ReferenceAttention, ReferenceKernels, TorchMemory
from core.errors import Unsupported
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
from core.types import DType
from core_minimal.kernels import KERNELS
from core_minimal.plugin import DEVICE, MinimalOptions

FLOAT32 = DType.FLOAT32
ONLY_FLOAT32 = "numpy has no bfloat16, and its float16 is slow"
KV_BYTES = 256 << 20


class MinimalPlatform(Platform):
    """Host memory, numpy kernels, core's reference for the rest; any step shape."""

    def __init__(self, options: MinimalOptions) -> None:
        self._memory = TorchMemory("cpu", host_memory)
        self._kernels = ReferenceKernels(KERNELS if options.kernels == "numpy" else None)

    def devices(self) -> Sequence[DeviceInfo]:
        """The machine."""
        return (DEVICE,)

    def capabilities(self) -> Capabilities:
        """float32. A matrix product rounds by its number of rows, so tokens may depend on the batch."""
        return Capabilities(dtypes=(FLOAT32,), kv_dtypes=(FLOAT32,), deterministic=True)

    def plan(self, config: Config) -> Plan:
        """Settle the element types and the size of the KV cache. Raises Unsupported."""
        overrides = []
        for option, dtype in (("dtype", config.model.dtype), ("kv_cache_dtype", config.cache.dtype)):
            if dtype is FLOAT32:
                continue
            if getattr(config.options, option) != "auto":
                raise Unsupported(f"{option} {dtype}", f"{ONLY_FLOAT32}; choose float32, or leave it to auto")
            overrides.append(Override(option=option, value=FLOAT32, reason=ONLY_FLOAT32))
        memory_bytes = config.cache.memory_bytes
        if memory_bytes is None:
            memory_bytes = KV_BYTES
            overrides.append(Override(option="kv_cache_memory", value="256MiB", reason="a size that fits anywhere"))
        planned = replace(
            config,
            model=replace(config.model, dtype=FLOAT32),
            cache=replace(config.cache, dtype=FLOAT32, memory_bytes=memory_bytes),
        )
        return Plan(config=planned, overrides=tuple(overrides))

    def memory(self) -> MemoryBackend:
        """torch's tensors on the host."""
        return self._memory

    def kernels(self) -> KernelTable:
        """numpy's before the references."""
        return self._kernels

    def attention(self) -> Sequence[AttentionBackend]:
        """The reference."""
        return (ReferenceAttention(),)


def host_memory() -> MemoryInfo:
    """The machine's memory in bytes, and what of it is free."""
    page = os.sysconf("SC_PAGE_SIZE")
    return MemoryInfo(total=os.sysconf("SC_PHYS_PAGES") * page, free=os.sysconf("SC_AVPHYS_PAGES") * page)
