"""Root-mean-square norms, a whole group of columns a program."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normed(values, weight, columns, inside, width, eps):
    """values float32 [BLOCK] by their root mean square, then scaled; not rounded in between, as Llama's own code does:
    what is subnormal in float16 would be rounded twice as coarsely as the result may be."""
    mean = tl.sum(values * values, axis=0) / width
    scale = 1.0 / tl.sqrt(mean + eps)
    return values * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def rms_norm(x, weight, out, x_stride, out_stride, width, eps, BLOCK: tl.constexpr):
    """Groups of `width` columns, each normed for itself. Grid: [T, groups]; BLOCK >= width."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row * x_stride + group * width + columns, mask=inside, other=0.0).to(tl.float32)
    normed = _normed(values, weight, columns, inside, width, eps)
    tl.store(out + row * out_stride + group * width + columns, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_rms_norm(
    x, residual, weight, normed, total, x_stride, residual_stride, normed_stride, total_stride, width, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """total = x + residual, normed = its norm. Grid: [T]; BLOCK >= width."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    left = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    summed = (left + right).to(total.dtype.element_ty)
    tl.store(total + row * total_stride + columns, summed, mask=inside)
    result = _normed(summed.to(tl.float32), weight, columns, inside, width, eps)
    tl.store(normed + row * normed_stride + columns, result.to(normed.dtype.element_ty), mask=inside)
