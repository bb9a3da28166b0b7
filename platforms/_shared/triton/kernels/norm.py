"""Root-mean-square norms: whole groups of columns, several of narrow ones a program."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normed(values, weight, columns, inside, width, eps):
    """values float32 [ROWS, BLOCK] by their root mean square, then scaled; not rounded in between, as Llama's own code
    does: what is subnormal in float16 would be rounded twice as coarsely as the result may be."""
    mean = tl.sum(values * values, axis=1) / width
    scale = 1.0 / tl.sqrt(mean + eps)
    return values * scale[:, None] * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def rms_norm(
    x, weight, out, x_stride, out_stride, count, groups, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """`count` groups of `width` columns, `groups` a row, each normed for itself. Grid: [ceil(count / ROWS)];
    BLOCK >= width."""
    group = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (group < count)[:, None] & (columns < width)[None, :]
    row, start = (group // groups).to(tl.int64), group % groups * width
    values = tl.load(x + (row * x_stride + start)[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    normed = _normed(values, weight, columns, columns < width, width, eps)
    tl.store(out + (row * out_stride + start)[:, None] + columns[None, :], normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_rms_norm(
    x, residual, weight, normed, total, x_stride, residual_stride, normed_stride, total_stride, count, width, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """total = x + residual, normed = its norm, `count` rows. Grid: [ceil(count / ROWS)]; BLOCK >= width."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = (row < count)[:, None] & (columns < width)[None, :]
    left = tl.load(x + (row * x_stride)[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    right = tl.load(residual + (row * residual_stride)[:, None] + columns[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    summed = (left + right).to(total.dtype.element_ty)
    tl.store(total + (row * total_stride)[:, None] + columns[None, :], summed, mask=inside)
    result = _normed(summed.to(tl.float32), weight, columns, columns < width, width, eps)
    target = normed + (row * normed_stride)[:, None] + columns[None, :]
    tl.store(target, result.to(normed.dtype.element_ty), mask=inside)
