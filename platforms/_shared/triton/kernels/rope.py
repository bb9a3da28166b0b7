"""Rotary position embedding: angles once a step, rotation of all heads of a token a program."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rope_angles(positions, inv_freq, out, out_stride, half, scale, BLOCK: tl.constexpr):
    """cos in the first `half` columns, sin in the others. Grid: [T]; BLOCK >= half."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < half
    position = tl.load(positions + row).to(tl.float32)
    angles = position * tl.load(inv_freq + columns, mask=inside, other=0.0)
    target = out + row * out_stride + columns
    tl.store(target, tl.cos(angles) * scale, mask=inside)
    tl.store(target + half, tl.sin(angles) * scale, mask=inside)


@triton.jit
def rotated(x, angles, row, heads, head_dim, half, x_stride, angles_stride, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Both halves of a token's heads after rotation, float32 [HEADS, HALF], and where they lie in the token's row."""
    head, dim = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (dim < half)
    offsets = head * head_dim + dim
    source = x + row * x_stride + offsets
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    turn = angles + row * angles_stride + dim
    cos = tl.load(turn, mask=dim < half, other=0.0)
    sin = tl.load(turn + half, mask=dim < half, other=0.0)
    return first * cos - second * sin, second * cos + first * sin, offsets, inside


@triton.jit
def rope(
    x, angles, out, x_stride, angles_stride, out_stride, heads, head_dim, half,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Grid: [T]. HEADS >= heads, HALF >= half, REST >= head_dim - 2 half, the dimensions that pass through (0: none)."""
    row = tl.program_id(0).to(tl.int64)
    first, second, offsets, inside = rotated(
        x, angles, row, heads, head_dim, half, x_stride, angles_stride, HEADS, HALF
    )
    target = out + row * out_stride + offsets
    tl.store(target, first.to(out.dtype.element_ty), mask=inside)
    tl.store(target + half, second.to(out.dtype.element_ty), mask=inside)
    if REST > 0:
        head, dim = tl.arange(0, HEADS)[:, None], 2 * half + tl.arange(0, REST)[None, :]
        passes = (head < heads) & (dim < head_dim)
        values = tl.load(x + row * x_stride + head * head_dim + dim, mask=passes)
        tl.store(out + row * out_stride + head * head_dim + dim, values, mask=passes)
