"""SwiGLU."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu_mul(gate_up, out, gate_up_stride, out_stride, width, BLOCK: tl.constexpr):
    """out = silu(gate) * up, gate the first `width` columns and up the others. Grid: [T, ceil(width / BLOCK)]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * gate_up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * out_stride + columns, (silu * up).to(out.dtype.element_ty), mask=inside)
