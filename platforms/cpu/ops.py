"""Torch kernels that are faster on a CPU than the reference, with the same rounding.

At one to 32 rows a step's time is the number of torch calls more than their work. Measured on two cores at 576
columns: rms_norm 27 -> 11 µs, float32 rope 30 -> 18 µs (medians, 1 row).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from core import ops
from core.platform import Kernel


def rms_norm(x: Tensor, weight: Tensor, out: Tensor, *, eps: float) -> None:
    """torch's norm without its weight rounds to the element type before the scale, as the reference does."""
    width = weight.shape[0]
    groups = (x.shape[0], x.shape[1] // width, width)
    torch.mul(functional.rms_norm(x.view(groups), (width,), None, eps), weight, out=out.view(groups))


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, normed: Tensor, total: Tensor, *, eps: float) -> None:
    """The residual sum, then the norm above."""
    torch.add(x, residual, out=total)
    rms_norm(total, weight, normed, eps=eps)


def rope(x: Tensor, angles: Tensor, out: Tensor, *, head_dim: int) -> None:
    """In float32 each half of the result is made in place; narrower types need the reference's wide temporaries."""
    if x.dtype != torch.float32:
        ops.rope_reference(x, angles, out, head_dim=head_dim)
        return
    half = angles.shape[1] // 2
    cos, sin = angles[:, None, :half], angles[:, None, half:]
    split = (x.shape[0], x.shape[1] // head_dim, head_dim)
    heads, target = x.view(split), out.view(split)
    first, second = heads[..., :half], heads[..., half : 2 * half]
    torch.mul(first, cos, out=target[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=target[..., half : 2 * half]).addcmul_(first, sin)
    if 2 * half < head_dim:
        target[..., 2 * half :] = heads[..., 2 * half :]


KERNELS: dict[str, Kernel] = {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm, "rope": rope}
