"""What the native kernels take in place of tensors: addresses, element types and strides."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core.types import DType
from platforms._shared import _native


def dtype_of(tensor: Tensor) -> DType:
    """The element type by its name in the contract."""
    return DType(str(tensor.dtype).removeprefix("torch."))


def operand(tensor: Tensor) -> _native.Tensor:
    """A matrix, whose rows may be any distance apart, or a vector. Raises ValueError where columns are apart."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"the columns of a tensor of strides {tensor.stride()} do not lie side by side")
    stride = tensor.stride(0) if tensor.dim() == 2 else 1
    return _native.Tensor(tensor.data_ptr(), dtype_of(tensor), tensor.shape[-1], stride)


def cache_operand(planes: Sequence[Tensor]) -> _native.KVCache:
    """Keys and values, each [num_blocks, num_kv_heads, block_size, head_dim]."""
    keys, values = planes
    _, num_kv_heads, block_size, head_dim = keys.shape
    return _native.KVCache(keys.data_ptr(), values.data_ptr(), dtype_of(keys), num_kv_heads, head_dim, block_size)
