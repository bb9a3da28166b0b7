"""An NVIDIA GPU as a platform."""

from __future__ import annotations

import torch

from core.platform import DeviceInfo
from core.types import DType
from platforms._shared.gpu.device import TorchDevice
from platforms._shared.gpu.platform import GpuPlatform

#: Every compute capability from 8.0 on has matrix units for both (CUDA C++ Programming Guide, Compute Capabilities).
_DTYPES = (DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32)


class CudaPlatform(GpuPlatform):
    """One GPU, with CUDA graphs."""

    def __init__(self, info: DeviceInfo, *, graphs: bool) -> None:
        # The contract wants sums in float32; cuBLAS would otherwise add partial sums of a split product in 16 bits.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        target = f"sm_{info.details['sm']}"
        super().__init__(info, TorchDevice(torch.cuda, f"cuda:{info.index}", target, graphs=graphs), _DTYPES)
