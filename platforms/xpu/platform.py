"""An Intel GPU as a platform."""

from __future__ import annotations

import torch

from core.platform import DeviceInfo
from core.types import DType
from platforms._shared.gpu.device import TorchDevice
from platforms._shared.gpu.platform import GpuPlatform

#: XMX units have both.
_DTYPES = (DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32)


class XpuPlatform(GpuPlatform):
    """One GPU. Every kernel is launched: torch's graphs of XPUs are not in all the versions that core takes."""

    def __init__(self, info: DeviceInfo) -> None:
        device = TorchDevice(torch.xpu, f"xpu:{info.index}", "xpu", graphs=False)
        super().__init__(info, device, _DTYPES)
