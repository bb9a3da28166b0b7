"""An AMD GPU as a platform. torch's name for it is `cuda` as well."""

from __future__ import annotations

import torch

from core.platform import DeviceInfo
from core.types import DType
from platforms._shared.gpu.device import TorchDevice
from platforms._shared.gpu.platform import GpuPlatform

#: CDNA and RDNA 3 have matrix instructions for both (AMD's instruction set documents).
_DTYPES = (DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32)


class RocmPlatform(GpuPlatform):
    """One GPU, with HIP graphs."""

    def __init__(self, info: DeviceInfo, *, graphs: bool) -> None:
        device = TorchDevice(torch.cuda, f"cuda:{info.index}", info.details["gfx"], graphs=graphs)
        super().__init__(info, device, _DTYPES)
