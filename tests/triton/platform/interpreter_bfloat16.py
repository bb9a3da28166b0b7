"""What Triton's interpreter gets wrong about bfloat16, set right: it keeps one as the 16 bits it is, cuts a float32 off
instead of rounding it, converts an integer to those bits, and multiplies matrices of them.

A compiled kernel does none of this. So kernels need no detour for the interpreter, and what is interpreted is what runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

_NAN = 0x7FC0


def narrowed(data: Any) -> Any:
    """float32 as bfloat16's bits, to the nearest, ties to even."""
    bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(data), _NAN, rounded).astype(np.uint16)


def widened(bits: Any) -> Any:
    """bfloat16's bits as float32."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def repair() -> None:
    """For all kernels of this process."""
    InterpreterBuilder.cast_impl = _cast
    InterpreterBuilder.create_dot = _dot


def _values(handle: Any) -> Any:
    return widened(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data


def _cast(self: Any, source: Any, target: Any) -> Any:
    values = _values(source)
    element = target.scalar
    data = narrowed(values.astype(np.float32)) if element == tl.bfloat16 else values.astype(_get_np_dtype(target))
    return TensorHandle(data.reshape(np.shape(values)), element)


def _dot(self: Any, left: Any, right: Any, total: Any, *precision: Any) -> Any:
    product = np.matmul(_values(left), _values(right), dtype=total.data.dtype)
    return TensorHandle(product + total.data, total.dtype.scalar)
