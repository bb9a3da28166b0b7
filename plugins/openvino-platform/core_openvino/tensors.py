"""One memory, two views: torch tensors as OpenVINO's, and back. Nothing is copied."""

from __future__ import annotations

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from core.types import DType

ELEMENT_TYPES = {
    DType.FLOAT32: ov.Type.f32,
    DType.BFLOAT16: ov.Type.bf16,
    DType.INT32: ov.Type.i32,
}
_TORCH_TYPES = {ov.Type.f32: torch.float32, ov.Type.bf16: torch.bfloat16, ov.Type.i32: torch.int32}
_OPENVINO_TYPES = {theirs: ours for ours, theirs in _TORCH_TYPES.items()}


def openvino_type(dtype: torch.dtype) -> ov.Type:
    """OpenVINO's element type of that torch type."""
    return _OPENVINO_TYPES[dtype]


def as_openvino(tensor: Tensor) -> ov.Tensor:
    """An OpenVINO tensor over the memory of a contiguous torch tensor. bfloat16, which numpy lacks, goes as its bits."""
    bits = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
    return ov.Tensor(bits.numpy(), ov.Shape(list(tensor.shape)), openvino_type(tensor.dtype))


def as_torch(tensor: ov.Tensor) -> Tensor:
    """A torch tensor over the memory of an OpenVINO tensor. It must not outlive that memory."""
    if tensor.element_type == ov.Type.bf16:
        return torch.from_numpy(tensor.data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tensor.data)
