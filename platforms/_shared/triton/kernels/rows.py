"""Gathers of rows: embedding and select_rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_rows(table, indices, out, table_stride, out_stride, width, BLOCK: tl.constexpr):
    """out[t] = table[indices[t]], BLOCK columns a program. Grid: [T, ceil(width / BLOCK)]."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    source = tl.load(indices + row).to(tl.int64)
    values = tl.load(table + source * table_stride + columns, mask=inside)
    tl.store(out + row * out_stride + columns, values, mask=inside)
