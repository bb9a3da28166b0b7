"""A general-purpose processor as a platform: what `cpu`, `arm` and `power` share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec.structs import replace

from core.config import GIB, Config
from core.defaults import ReferenceKernels
from core.errors import ConfigError
from core.logits import LogitsKernels
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
from platforms._shared import _native, host
from platforms._shared.native.attention import DTYPES, KV_DTYPES, NativeAttention
from platforms._shared.native.logits import NativeLogits
from platforms._shared.native.memory import CpuMemory
from platforms._shared.native.ops import KERNELS
from platforms._shared.native.program import lower
from platforms._shared.planning import Served, with_dtypes, with_kv_memory

_DEQUANTIZED = "long prompts are quicker on floats; --quantization gguf keeps the file's blocks, in less memory"
#: bfloat16 for weights of other types: the kernels are quick at both on every CPU.
_SERVED = Served(DTYPES, KV_DTYPES, DType.BFLOAT16, "the CPU kernels")


class HostPlatform(Platform):
    """One device: the cores and the memory that this process may use.

    Making one sets the thread counts of torch and of the native kernels, for the whole process.
    """

    #: The next step is planned, and the last one's tokens are delivered, while the native program runs without the GIL.
    max_in_flight = 2

    def __init__(self, name: str, threads: int | None) -> None:
        """`threads` of torch and of the native kernels; None: one a usable core. `name` is for errors."""
        cores = host.usable_cores()
        threads = cores if threads is None else threads
        if not 1 <= threads <= cores:
            raise ConfigError(
                f"--platform-opt {name}.threads", f"{threads} is not from 1 to the {cores} cores that are usable here"
            )
        torch.set_num_threads(threads)
        _native.set_num_threads(threads)
        self._device = host.device_info()
        self._memory = CpuMemory(_memory_info)
        self._kernels = ReferenceKernels(KERNELS)
        self._attention = NativeAttention()

    def devices(self) -> Sequence[DeviceInfo]:
        """The one device."""
        return (self._device,)

    def capabilities(self) -> Capabilities:
        """Any step shape. Batch-invariant: each result is one chain of sums, in one order whatever else is in the step."""
        return Capabilities(
            dtypes=DTYPES,
            kv_dtypes=KV_DTYPES,
            quantization=tuple(_native.schemes()),
            deterministic=True,
            batch_invariant=True,
            kv_transfer=True,
        )

    def memory(self) -> MemoryBackend:
        """Host memory within the cgroup's limit, in which the weights lie packed."""
        return self._memory

    def kernels(self) -> KernelTable:
        """The native kernels."""
        return self._kernels

    def attention(self) -> Sequence[AttentionBackend]:
        """Native paged attention."""
        return (self._attention,)

    def logits_kernels(self) -> LogitsKernels | None:
        """Native ones: they read a row once, and after that only where it matters."""
        return NativeLogits()

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable | None:
        """A native program; None where the model uses an op that has no native kernel."""
        del bucket
        return lower(bindings)

    # --- planning ---

    def plan(self, config: Config) -> Plan:
        """Settle the element types and the size of the KV cache. Raises Unsupported, ConfigError."""
        overrides: list[Override] = []
        config = with_dtypes(config, _SERVED, overrides)
        quantization = config.model.quantization
        if quantization == "stored" and config.options.quantization == "auto":
            overrides.append(Override(option="quantization", value="none", reason=_DEQUANTIZED))
            config = replace(config, model=replace(config.model, quantization="none"))
        total = self._device.memory_bytes
        reason = "a quarter of the memory this process may use, at most 4 GiB"
        config = with_kv_memory(config, total, min(total // 4, 4 * GIB), reason, overrides)
        return Plan(config=config, overrides=tuple(overrides))


def _memory_info() -> MemoryInfo:
    found = host.memory()
    return MemoryInfo(found.total, found.free)
