"""A GPU as a platform: what `cuda`, `rocm` and `xpu` share."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from core.config import Config
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
from platforms._shared.gpu.device import Device
from platforms._shared.gpu.memory import GpuMemory
from platforms._shared.gpu.program import GpuExecutable, fused
from platforms._shared.kernels import GivenKernels
from platforms._shared.planning import Served, with_dtypes, with_kv_memory
from platforms._shared.triton.tiles import tiles_for

#: The part of a device's memory that the engine may take: the rest is the driver's and other processes'.
_SHARE = 0.9


class GpuPlatform(Platform):
    """One GPU, on the Triton kernels, with torch's products."""

    #: The next step is planned, and the last one's tokens are delivered, while the device works.
    max_in_flight = 2

    def __init__(self, info: DeviceInfo, device: Device, dtypes: tuple[DType, ...]) -> None:
        """`dtypes` are the element types that the device has matrix units for, and float32."""
        self._info = replace(info, memory_bytes=device.memory().total)  # torch's count leaves out what the driver keeps
        self._device = device
        self._dtypes = dtypes
        self._memory = GpuMemory(device)
        self._kernels, self._attention = self.make_kernels()

    def make_kernels(self) -> tuple[KernelTable, AttentionBackend]:
        """The kernels of the ops, and attention's, for this device; triton is imported here."""
        from platforms._shared.triton.attention import TritonAttention
        from platforms._shared.triton.ops import dense_kernels

        tiles = tiles_for(self._device.target)
        return GivenKernels(dense_kernels(tiles)), TritonAttention(tiles, self._device.name)

    def devices(self) -> Sequence[DeviceInfo]:
        """The one device."""
        return (self._info,)

    def capabilities(self) -> Capabilities:
        """Any step shape. Splits of a context and the library's products depend on the batch, so tokens may."""
        return Capabilities(
            dtypes=self._dtypes,
            kv_dtypes=(*self._dtypes, DType.INT8) if tiles_for(self._device.target).int8_kv else self._dtypes,
            kv_transfer=True,
        )

    def memory(self) -> MemoryBackend:
        """The device's."""
        return self._memory

    def kernels(self) -> KernelTable:
        """Triton's, and torch's products."""
        return self._kernels

    def attention(self) -> Sequence[AttentionBackend]:
        """Triton's."""
        return (self._attention,)

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable:
        """Graphs of small steps, for every other shape the kernels one by one."""
        del bucket
        write_rotated_kv = getattr(self._attention, "write_rotated_kv", None)
        if write_rotated_kv is not None:
            bindings = fused(bindings, write_rotated_kv)
        return GpuExecutable(bindings, self._device)

    def plan(self, config: Config) -> Plan:
        """Settle the element types, and what the KV cache may take at most. Raises Unsupported, ConfigError."""
        overrides: list[Override] = []
        config = with_dtypes(config, self._served(), overrides)
        total = self._info.memory_bytes
        reason = f"{_SHARE:.0%} of the device's memory at most, and what is free once the weights are loaded"
        config = with_kv_memory(config, total, int(_SHARE * total), reason, overrides)
        return Plan(config=config, overrides=tuple(overrides))

    def _served(self) -> Served:
        kv_dtypes = self.capabilities().kv_dtypes
        return Served(self._dtypes, kv_dtypes, self._dtypes[0], f"the kernels for {self._info.name}")
