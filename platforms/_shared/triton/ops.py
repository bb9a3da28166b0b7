"""The dense ops by Triton's kernels: `core.ops` says what each means. Rows of any stride, columns side by side.

`linear` is torch's own, which goes to the vendor's library. The ops of encoders and poolers have no kernels here yet; their
references read values on the host, so they are not claimed either.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import triton
from torch import Tensor

from core import ops
from core.platform import Kernel
from platforms._shared.triton.kernels import activation, norm, rope, rows
from platforms._shared.triton.tiles import Tiles

_WARP_COLUMNS = 256  # columns of a norm that a warp takes


def dense_kernels(tiles: Tiles) -> Mapping[str, Kernel]:
    """The kernels by op, in a target's tiles: the dense ops of decoders."""
    return {
        "linear": ops.REFERENCE["linear"],
        "embedding": partial(gather, tiles),
        "select_rows": partial(_select_rows, tiles),
        "rms_norm": partial(rms_norm, tiles),
        "add_rms_norm": partial(add_rms_norm, tiles),
        "silu_mul": partial(silu_mul, tiles),
        "rope_angles": rope_angles,
        "rope": rotate,
    }


def gather(tiles: Tiles, indices: Tensor, table: Tensor, out: Tensor) -> None:
    """Rows of `table` [N, H] by `indices` [T] -> out [T, H]."""
    count, width = out.shape
    grid = (count, triton.cdiv(width, tiles.columns))
    rows.gather_rows[grid](table, indices, out, table.stride(0), out.stride(0), width, BLOCK=tiles.columns)


def _select_rows(tiles: Tiles, x: Tensor, indices: Tensor, out: Tensor) -> None:
    gather(tiles, indices, x, out)


def rms_norm(tiles: Tiles, x: Tensor, weight: Tensor, out: Tensor, *, eps: float) -> None:
    """x, out [T, n * len(weight)]."""
    width = weight.shape[0]
    groups = x.shape[1] // width
    count, block = x.shape[0] * groups, triton.next_power_of_2(width)
    rows = norm_rows(tiles, block)
    norm.rms_norm[(triton.cdiv(count, rows),)](
        x, weight, out, x.stride(0), out.stride(0), count, groups, width, eps,
        ROWS=rows, BLOCK=block, num_warps=norm_warps(block),
    )  # fmt: skip


def add_rms_norm(
    tiles: Tiles, x: Tensor, residual: Tensor, weight: Tensor, normed: Tensor, total: Tensor, *, eps: float
) -> None:
    """All [T, H] but weight [H]."""
    strides = [each.stride(0) for each in (x, residual, normed, total)]
    count, width = x.shape
    block = triton.next_power_of_2(width)
    rows = norm_rows(tiles, block)
    norm.add_rms_norm[(triton.cdiv(count, rows),)](
        x, residual, weight, normed, total, *strides, count, width, eps,
        ROWS=rows, BLOCK=block, num_warps=norm_warps(block),
    )  # fmt: skip


def norm_rows(tiles: Tiles, block: int) -> int:
    """Groups of `block` columns that one program norms."""
    return max(1, tiles.columns // block)


def norm_warps(block: int) -> int:
    """Warps for a norm of `block` columns: enough that each has its columns in a few registers a thread."""
    return min(16, max(2, block // _WARP_COLUMNS))


def silu_mul(tiles: Tiles, gate_up: Tensor, out: Tensor) -> None:
    """gate_up [T, 2 I] -> out [T, I]."""
    count, width = out.shape
    grid = (count, triton.cdiv(width, tiles.columns))
    activation.silu_mul[grid](gate_up, out, gate_up.stride(0), out.stride(0), width, BLOCK=tiles.columns)


def rope_angles(positions: Tensor, inv_freq: Tensor, out: Tensor, *, scale: float) -> None:
    """positions [T] int32, inv_freq [R / 2] -> out [T, R] float32."""
    half = inv_freq.shape[0]
    rope.rope_angles[(positions.shape[0],)](
        positions, inv_freq, out, out.stride(0), half, scale, BLOCK=triton.next_power_of_2(half)
    )


def rotate(x: Tensor, angles: Tensor, out: Tensor, *, head_dim: int) -> None:
    """x, out [T, heads * head_dim], angles [T, R]."""
    heads, half = x.shape[1] // head_dim, angles.shape[1] // 2
    rest = head_dim - 2 * half
    rope.rope[(x.shape[0],)](
        x, angles, out, x.stride(0), angles.stride(0), out.stride(0), heads, head_dim, half,
        HEADS=triton.next_power_of_2(heads), HALF=triton.next_power_of_2(half),
        REST=triton.next_power_of_2(rest) if rest else 0,
    )  # fmt: skip
