"""Writes into the paged KV cache, with the rotation of the keys in the same pass where a program allows it.

A plane is [num_blocks, kv_heads, block_size, head_dim]. Of int8 blocks each head's part is followed by a float32 scale a
token: `scales` is the same plane read as float32, and its strides count these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from platforms._shared.triton.kernels.rope import rotated


@triton.jit
def _slot(slot_mapping, row, block_size):
    slot = tl.load(slot_mapping + row).to(tl.int64)
    return slot // block_size, slot % block_size


@triton.jit
def _codes(values, scale):
    """int8 codes, rounded to the nearest; a scale of 0 has one value to give."""
    quotient = values / tl.where(scale == 0.0, 1.0, scale)
    return tl.floor(quotient + 0.5).to(tl.int8)


@triton.jit
def _store_heads(
    source, source_stride, plane, scales, row, block, offset, heads, head_dim, block_size, block_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    head, dim = tl.arange(0, HEADS), tl.arange(0, DIM)
    inside = (head < heads)[:, None] & (dim < head_dim)[None, :]
    values = tl.load(source + row * source_stride + head[:, None] * head_dim + dim[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    head_stride = block_stride // heads
    target = plane + block * block_stride + head[:, None] * head_stride + offset * head_dim + dim[None, :]
    if INT8:
        scale = tl.max(tl.abs(values), axis=1) / 127.0
        tl.store(target, _codes(values, scale[:, None]), mask=inside)
        place = block * (block_stride // 4) + head * (head_stride // 4) + block_size * head_dim // 4 + offset
        tl.store(scales + place, scale, mask=head < heads)
    else:
        tl.store(target, values.to(plane.dtype.element_ty), mask=inside)


@triton.jit
def kv_write(
    key, value, keys, values, key_scales, value_scales, slot_mapping, key_stride, value_stride, block_stride,
    heads, head_dim, block_size, HEADS: tl.constexpr, DIM: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Grid: [T]. HEADS >= heads, DIM >= head_dim."""
    row = tl.program_id(0).to(tl.int64)
    block, offset = _slot(slot_mapping, row, block_size)
    _store_heads(
        key, key_stride, keys, key_scales, row, block, offset, heads, head_dim, block_size, block_stride,
        HEADS, DIM, INT8,
    )  # fmt: skip
    _store_heads(
        value, value_stride, values, value_scales, row, block, offset, heads, head_dim, block_size, block_stride,
        HEADS, DIM, INT8,
    )  # fmt: skip


@triton.jit
def rope_kv_write(
    key, angles, value, keys, values, key_scales, value_scales, slot_mapping, key_stride, angles_stride, value_stride,
    block_stride, heads, head_dim, block_size,
    HEADS: tl.constexpr, HALF: tl.constexpr, DIM: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """Rotate the keys, all dimensions of them, and store both. Grid: [T]; HALF >= head_dim / 2, DIM >= head_dim."""
    row = tl.program_id(0).to(tl.int64)
    block, offset = _slot(slot_mapping, row, block_size)
    half = head_dim // 2
    first, second, _, inside = rotated(key, angles, row, heads, head_dim, half, key_stride, angles_stride, HEADS, HALF)
    # What an unfused rope would have stored.
    first = first.to(key.dtype.element_ty).to(tl.float32)
    second = second.to(key.dtype.element_ty).to(tl.float32)
    head = tl.arange(0, HEADS)
    head_stride = block_stride // heads
    place = block * block_stride + head[:, None] * head_stride + offset * head_dim + tl.arange(0, HALF)[None, :]
    if INT8:
        scale = tl.maximum(tl.max(tl.abs(first), axis=1), tl.max(tl.abs(second), axis=1)) / 127.0
        tl.store(keys + place, _codes(first, scale[:, None]), mask=inside)
        tl.store(keys + place + half, _codes(second, scale[:, None]), mask=inside)
        at = block * (block_stride // 4) + head * (head_stride // 4) + block_size * head_dim // 4 + offset
        tl.store(key_scales + at, scale, mask=head < heads)
    else:
        tl.store(keys + place, first.to(keys.dtype.element_ty), mask=inside)
        tl.store(keys + place + half, second.to(keys.dtype.element_ty), mask=inside)
    _store_heads(
        value, value_stride, values, value_scales, row, block, offset, heads, head_dim, block_size, block_stride,
        HEADS, DIM, INT8,
    )  # fmt: skip
