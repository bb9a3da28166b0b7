"""Kernels in numpy, each with the meaning that `core.ops.REFERENCE` gives the op of its name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.platform import Kernel

Array = NDArray[np.float32]


def on_tensors(kernel: Kernel) -> Kernel:
    """The kernel as core calls it: with torch tensors, here seen as numpy arrays over the same memory."""

    def call(*tensors: Tensor | None, **attrs: Any) -> None:
        with np.errstate(all="ignore"):  # infinities and NaN pass through, as in the references
            kernel(*(None if tensor is None else tensor.numpy() for tensor in tensors), **attrs)

    return call


def linear(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """x [T, K] times weight [N, K] transposed, plus bias [N] -> out [T, N]."""
    np.matmul(x, weight.T, out=out)
    if bias is not None:
        out += bias


def rms_norm(x: Array, weight: Array, out: Array, *, eps: float) -> None:
    """Each run of len(weight) columns of x [T, n * len(weight)] over its root mean square, times weight."""
    runs = x.reshape(len(x), x.shape[1] // len(weight), len(weight))
    scale = 1 / np.sqrt(np.square(runs).mean(-1, keepdims=True) + np.float32(eps))
    out[...] = (runs * scale * weight).reshape(x.shape)


def add_rms_norm(x: Array, residual: Array, weight: Array, normed: Array, total: Array, *, eps: float) -> None:
    """total = x + residual [T, H], and normed its norm."""
    np.add(x, residual, out=total)
    rms_norm(total, weight, normed, eps=eps)


def silu_mul(gate_up: Array, out: Array) -> None:
    """gate_up [T, 2 I] -> silu(first half) * second half [T, I]."""
    gate, up = np.split(gate_up, 2, axis=1)
    np.multiply(gate / (1 + np.exp(-gate)), up, out=out)


def rope(x: Array, angles: Array, out: Array, *, head_dim: int) -> None:
    """Rotate the first R dimensions of each head of x [T, heads * head_dim] by angles [T, R], cosines first."""
    half = angles.shape[1] // 2
    cos, sin = angles[:, None, :half], angles[:, None, half:]
    heads = x.reshape(len(x), x.shape[1] // head_dim, head_dim)
    first, second, rest = np.split(heads, [half, 2 * half], axis=-1)
    rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    out[...] = rotated.reshape(x.shape)


KERNELS: dict[str, Kernel] = {
    kernel.__name__: on_tensors(kernel) for kernel in (linear, rms_norm, add_rms_norm, silu_mul, rope)
}
