"""A platform that can run only the step shapes it declares, as a compiler of static shapes does.

Its executable for a bucket runs that bucket and raises on anything else. The rest is the contract's defaults.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec
import torch

from core.config import Config
from core.defaults import ReferenceAttention, ReferenceKernels, TorchMemory, bind_step
from core.errors import Unsupported
from core.platform import (
    AttentionBackend,
    Bindings,
    Bucket,
    Capabilities,
    DeviceInfo,
    Executable,
    KernelTable,
    MemoryBackend,
    MemoryInfo,
    Override,
    Plan,
    Platform,
)
from core.types import DType

BUCKETS = tuple(Bucket(tokens, min(tokens, 32)) for tokens in (1, 8, 32, 64))
LARGEST = BUCKETS[-1]
KV_BYTES = 64 << 20


class StaticPlatform(Platform):
    """Host memory, reference kernels, four shapes."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._memory = self._make_memory()

    def _make_memory(self) -> TorchMemory:
        return TorchMemory("cpu", _memory_info)

    def devices(self) -> Sequence[DeviceInfo]:
        return (DeviceInfo(index=0, name="static shapes"),)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            dtypes=(DType.FLOAT32,),
            kv_dtypes=(DType.FLOAT32,),
            buckets=BUCKETS,
            deterministic=True,
            kv_transfer=True,
        )

    def plan(self, config: Config) -> Plan:
        """Bring the step within the largest bucket, and what was left open to float32."""
        overrides: list[Override] = []
        scheduler = msgspec.structs.replace(
            config.scheduler,
            max_num_seqs=_within("max_num_seqs", config, LARGEST.num_seqs, overrides),
            max_num_batched_tokens=_within("max_num_batched_tokens", config, LARGEST.num_tokens, overrides),
        )
        options, dtype, kv_dtype = config.options, config.model.dtype, config.cache.dtype
        cache = msgspec.structs.replace(
            config.cache,
            dtype=DType.FLOAT32 if options.kv_cache_dtype == "auto" else kv_dtype,
            memory_bytes=config.cache.memory_bytes or KV_BYTES,
        )
        model = msgspec.structs.replace(config.model, dtype=DType.FLOAT32 if options.dtype == "auto" else dtype)
        if model.dtype is not dtype:
            overrides.append(Override(option="dtype", value=model.dtype, reason="the kernels have float32 only"))
        if config.cache.memory_bytes is None:
            overrides.append(Override(option="kv_cache_memory", value=str(KV_BYTES), reason="enough for tiny models"))
        planned = msgspec.structs.replace(config, model=model, cache=cache, scheduler=scheduler)
        return Plan(config=planned, overrides=tuple(overrides))

    def memory(self) -> MemoryBackend:
        return self._memory

    def kernels(self) -> KernelTable:
        return ReferenceKernels()

    def attention(self) -> Sequence[AttentionBackend]:
        return (ReferenceAttention(),)

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable:
        if bucket not in BUCKETS:
            raise Unsupported(f"step shape {bucket}", f"this platform compiles {BUCKETS} only")
        return StaticExecutable(bindings, bucket)


class StaticExecutable(Executable):
    """One shape, bound when it is compiled."""

    def __init__(self, bindings: Bindings, bucket: Bucket) -> None:
        self._bucket = bucket
        self._calls = bind_step(bindings, bucket.num_tokens, bucket.num_seqs)

    def run(self, num_tokens: int, num_seqs: int) -> None:
        if Bucket(num_tokens, num_seqs) != self._bucket:
            raise Unsupported(
                f"a step of {num_tokens} tokens, {num_seqs} sequences", f"this was compiled for {self._bucket}"
            )
        for call in self._calls:
            call()


def _within(option: str, config: Config, most: int, overrides: list[Override]) -> int:
    asked: int | None = getattr(config.options, option)
    if asked is not None and asked > most:
        raise Unsupported(f"{option} {asked}", f"the largest step here is {LARGEST}")
    value: int = min(getattr(config.scheduler, option), most)
    if asked is None:
        overrides.append(Override(option=option, value=str(value), reason=f"the largest step here is {LARGEST}"))
    return value


def _memory_info() -> MemoryInfo:
    page = os.sysconf("SC_PAGE_SIZE")
    return MemoryInfo(os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page)
