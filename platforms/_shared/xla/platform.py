"""A device that torch_xla compiles for, as a platform: what `tpu` and `neuron` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch_xla
from msgspec.structs import replace
from torch_xla import runtime
from torch_xla.backends import set_mat_mul_precision
from torch_xla.core import xla_model

from core.config import GIB, Config
from core.errors import ConfigError, Unsupported
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
from core.program import Storage
from core.types import DType
from platforms._shared import host
from platforms._shared.kernels import GivenKernels
from platforms._shared.planning import Served, with_dtypes, with_kv_memory
from platforms._shared.xla.attention import GatheredAttention
from platforms._shared.xla.memory import XlaMemory
from platforms._shared.xla.ops import KERNELS
from platforms._shared.xla.program import CompiledProgram

DTYPES = (DType.BFLOAT16, DType.FLOAT32)


class XlaPlatform(Platform):
    """One device of this process's PJRT client."""

    def __init__(self, name: str, device: DeviceInfo, buckets: tuple[Bucket, ...], cache: Path | None) -> None:
        """`buckets` are the step shapes that will be compiled; `cache` keeps what was compiled, where the device's
        runtime can read it back."""
        self._name = name
        self._info = device
        self._buckets = buckets
        self._hosted = runtime.device_type() == "CPU"
        self._device = torch_xla.device()
        self._memory = XlaMemory(self._device, self._memory_info)
        self._kernels = GivenKernels(KERNELS)
        self._attention = GatheredAttention(torch_xla.sync)
        set_mat_mul_precision("highest")  # a TPU would otherwise multiply float32 in bfloat16
        if cache is not None:
            self._keep_compiled(cache)

    def devices(self) -> Sequence[DeviceInfo]:
        """The one device."""
        return (self._info,)

    def capabilities(self) -> Capabilities:
        """Fixed step shapes. A product's sums are the compiler's to order, and it may do so by shape."""
        return Capabilities(dtypes=DTYPES, kv_dtypes=DTYPES, buckets=self._buckets, deterministic=True)

    def memory(self) -> MemoryBackend:
        """The device's memory."""
        return self._memory

    def kernels(self) -> KernelTable:
        """The op table, traced."""
        return self._kernels

    def attention(self) -> Sequence[AttentionBackend]:
        """Attention over gathered blocks."""
        return (self._attention,)

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable | None:
        """The program, traced and compiled for a bucket."""
        assert bucket is not None, "buckets are declared"
        for cache in bindings.program.of(Storage.CACHE):  # the first copy of a block compiles, so it is made now
            self._attention.copy_blocks(bindings.handle(cache), [(0, 0)])
        return CompiledProgram(bindings, bucket)

    # --- planning ---

    def plan(self, config: Config) -> Plan:
        """Settle the element types, the limits that the buckets set, and the size of the KV cache. Raises Unsupported."""
        overrides: list[Override] = []
        if not config.platform.compile:
            raise Unsupported("--no-compile", f"platform {self._name} runs compiled programs only; leave it out")
        config = with_dtypes(config, Served(DTYPES, DTYPES, DTYPES[0], f"the programs of {self._name}"), overrides)
        memory = self._memory_info()
        reason = "half of the device's free memory, at most 4 GiB"
        config = with_kv_memory(config, memory.total, min(memory.free // 2, 4 * GIB), reason, overrides)
        scheduler = replace(config.scheduler, **self._limits(config, overrides))
        return Plan(config=replace(config, scheduler=scheduler), overrides=tuple(overrides))

    def _limits(self, config: Config, overrides: list[Override]) -> dict[str, int]:
        """What of the scheduler's limits is beyond the largest bucket, lowered to it; an explicit one is refused."""
        largest = {
            "max_num_batched_tokens": max(bucket.num_tokens for bucket in self._buckets),
            "max_num_seqs": max(bucket.num_seqs for bucket in self._buckets),
            "max_model_len": max(bucket.context for bucket in self._buckets),
        }
        lowered = {}
        for option, most in largest.items():
            wanted = getattr(config.scheduler, option)
            if wanted <= most:
                continue
            if getattr(config.options, option) is not None:
                raise Unsupported(
                    f"--{option.replace('_', '-')} {wanted}",
                    f"the largest bucket has {most}; lower it, or set --platform-opt {self._name}.buckets",
                )
            lowered[option] = most
            overrides.append(Override(option=option, value=str(most), reason="the largest bucket that is compiled"))
        return lowered

    def _memory_info(self) -> MemoryInfo:
        """What the runtime says of the device; on the host's own device it says nothing, and the kernel is asked."""
        if self._hosted:
            found = host.memory()
            return MemoryInfo(found.total, found.free)
        told = xla_model.get_memory_info(self._device)
        return MemoryInfo(told["bytes_limit"], told["bytes_limit"] - told["bytes_used"])

    def _keep_compiled(self, directory: Path) -> None:
        """Keep compiled programs in `directory`. torch_xla names each by the program, its own version and the compiler's
        flags. Raises ConfigError if the directory cannot be made."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--platform-opt {self._name}.cache_dir", f"{directory} cannot be made: {error.strerror}"
            ) from error
        runtime.initialize_cache(str(directory), readonly=False)
