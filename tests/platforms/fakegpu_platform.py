"""The GPUs' platform on a device that is this host: what `cuda`, `rocm` and `xpu` share, with no GPU.

Its graphs are recordings of torch's operations (`fakegraph_platform`): a read by the host is refused while one is
captured, a replay repeats the very tensors of the capture, and nothing may be allocated once one was replayed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from fakegraph_platform import CapturableAttention, _Operation, capture, replay
from msgspec.structs import replace
from torch import Tensor

from core import ops
from core.defaults import ReferenceKernels
from core.errors import OutOfDeviceMemory, Unsupported
from core.platform import AttentionBackend, Capabilities, DeviceInfo, Kernel, KernelTable, MemoryInfo, Support
from core.types import DType
from platforms._shared.gpu.device import Device, Replay
from platforms._shared.gpu.memory import GpuMemory
from platforms._shared.gpu.platform import GpuPlatform


class HostDevice(Device):
    """Host memory."""

    name, target, graphs = "cpu", "none", True

    def __init__(self) -> None:
        self.replays = 0

    def memory(self) -> MemoryInfo:
        page = os.sysconf("SC_PAGE_SIZE")
        return MemoryInfo(os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page)

    def synchronize(self) -> None:
        pass

    def pinned(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def capture(self, step: Callable[[], None]) -> Replay:
        step()
        with capture() as operations:
            step()
        return partial(self._replay, operations)

    def _replay(self, operations: Sequence[_Operation]) -> None:
        self.replays += 1
        replay(operations)


class SealedGpuMemory(GpuMemory):
    """Which the host cannot reach, and which does not grow under a graph."""

    def __init__(self, device: HostDevice) -> None:
        super().__init__(device)
        self._host = device

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Any:
        if self._host.replays:
            raise OutOfDeviceMemory(f"{usage}: {list(shape)} {dtype} was asked for after the first replay")
        return super().alloc(shape, dtype, usage)

    def host_view(self, handle: Any) -> None:
        return None


class DecoderKernels(ReferenceKernels):
    """The references that read no value on the host."""

    def supports(self, op: str) -> Support:
        return Support(False, "it reads values on the host") if op in ops.ENCODER_OPS else super().supports(op)

    def get(self, op: str) -> Kernel:
        if support := self.supports(op):
            return super().get(op)
        raise Unsupported(f"op {op}", support.reason)


class FakeGpuPlatform(GpuPlatform):
    """float32 on the references."""

    def __init__(self, info: DeviceInfo) -> None:
        torch.set_num_threads(1)
        self.device = HostDevice()
        super().__init__(info, self.device, (DType.FLOAT32,))
        self._memory = SealedGpuMemory(self.device)

    def make_kernels(self) -> tuple[KernelTable, AttentionBackend]:
        return DecoderKernels(), CapturableAttention()

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), kv_dtypes=(DType.FLOAT32,), deterministic=True)
