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
    """Keys and values, as `NativeAttention.kv_layout` says."""
    keys, values = planes
    _, num_kv_heads, block_size, _ = keys.shape
    return _native.KVCache(
        keys.data_ptr(), values.data_ptr(), dtype_of(keys), num_kv_heads, cache_width(keys), block_size
    )


#: Behind the elements of int8 lies a float32 a token.
SCALE_BYTES = 4


def cache_width(plane: Tensor) -> int:
    """Elements that a head of a token takes in a plane: head_dim, filled up to whole panels."""
    return plane.shape[-1] - (SCALE_BYTES if dtype_of(plane) is DType.INT8 else 0)
