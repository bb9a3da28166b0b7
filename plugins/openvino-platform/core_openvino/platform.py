"""The platform: host memory, OpenVINO's CPU device for the dense ops, torch for attention."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from core.config import GIB, Config
from core.defaults import TorchMemory
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
    Override,
    Plan,
    Platform,
)
from core.types import DType
from core_openvino import host
from core_openvino.attention import PagedAttention
from core_openvino.compiler import CompiledProgram
from core_openvino.device import Device
from core_openvino.kernels import OneOpKernels

_NO_FLOAT16 = "it was never verified here; choose float32 or bfloat16, or leave it to auto"
_NO_BFLOAT16 = "this processor has no bfloat16 instructions, and OpenVINO would compute in float32; choose float32"


class OpenVinoPlatform(Platform):
    """One device: the cores and the memory that this process may use.

    Making one sets torch's thread count for the whole process: to `threads`, or to 1 unless `torch_may_thread`.
    """

    def __init__(self, threads: int, *, torch_may_thread: bool) -> None:
        torch.set_num_threads(threads if torch_may_thread else 1)
        self._openvino = Device(threads)
        native = self._openvino.has_bfloat16()
        self._dtypes = (DType.FLOAT32, DType.BFLOAT16) if native else (DType.FLOAT32,)
        self._device = host.device_info()
        self._memory = TorchMemory("cpu", host.memory)
        self._kernels = OneOpKernels(self._openvino)
        self._attention = PagedAttention()

    def devices(self) -> Sequence[DeviceInfo]:
        """The one device."""
        return (self._device,)

    def capabilities(self) -> Capabilities:
        """Any step shape, in float32, and in bfloat16 where the processor has it."""
        return Capabilities(dtypes=self._dtypes, kv_dtypes=self._dtypes, deterministic=True, kv_transfer=True)

    def memory(self) -> MemoryBackend:
        """Host memory."""
        return self._memory

    def kernels(self) -> KernelTable:
        """A compiled model for each op."""
        return self._kernels

    def attention(self) -> Sequence[AttentionBackend]:
        """The paged attention in torch."""
        return (self._attention,)

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable:
        """The whole program as one model, for any shape."""
        return CompiledProgram(bindings, self._openvino, self._attention)

    # --- planning ---

    def plan(self, config: Config) -> Plan:
        """Settle the element types and the size of the KV cache. Raises Unsupported, ConfigError."""
        overrides: list[Override] = []
        dtype = self._dtype("dtype", config.options.dtype, config.model.dtype, overrides)
        if config.options.kv_cache_dtype == "auto":
            kv_dtype = dtype
        else:
            kv_dtype = self._dtype("kv_cache_dtype", config.options.kv_cache_dtype, config.cache.dtype, overrides)
        planned = msgspec.structs.replace(
            config,
            model=msgspec.structs.replace(config.model, dtype=dtype),
            cache=msgspec.structs.replace(
                config.cache, dtype=kv_dtype, memory_bytes=self._kv_bytes(config.cache.memory_bytes, overrides)
            ),
        )
        return Plan(config=planned, overrides=tuple(overrides))

    def _dtype(self, option: str, asked: str, settled: DType, overrides: list[Override]) -> DType:
        """The user's, or for `auto` the one of the weights, if it is served; float32 holds every other one exactly."""
        if settled in self._dtypes:
            return settled
        why = _NO_BFLOAT16 if settled is DType.BFLOAT16 else _NO_FLOAT16
        if asked != "auto":
            raise Unsupported(f"--{option.replace('_', '-')} {asked}", why)
        reason = f"the weights are {settled}: {why.partition(';')[0]}; float32 holds them exactly"
        overrides.append(Override(option=option, value=DType.FLOAT32, reason=reason))
        return DType.FLOAT32

    def _kv_bytes(self, asked: int | None, overrides: list[Override]) -> int:
        most = self._device.memory_bytes
        if asked is None:
            granted = min(most // 8, 4 * GIB)
            reason = "an eighth of the memory this process may use, at most 4 GiB: OpenVINO keeps the weights once more"
            overrides.append(Override(option="kv_cache_memory", value=f"{granted / GIB:.2f}GiB", reason=reason))
            return granted
        if asked > most:
            raise ConfigError("--kv-cache-memory", f"{asked} bytes are more than the {most} this process may use")
        return asked
