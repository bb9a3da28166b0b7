"""What each op computes and moves: FLOPs and bytes, from the shapes and types of its operands.

`WORK[op]` takes what the op's kernel takes, so it serves a recorded call (`cost.py`) and a kernel call (`kernels.py`)
alike. Each operand is read or written once: caches beside the device's memory are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from core.types import DType


class Operand(Protocol):
    """A tensor's outside."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def dtype(self) -> DType:
        """Element type."""
        ...


class Work(NamedTuple):
    """Arithmetic operations (a multiplication and an addition are two), bytes of memory traffic, and the type computed in."""

    flops: float
    bytes: float
    dtype: DType


WORK: dict[str, Callable[..., Work]] = {}


def _work(function: Callable[..., Work]) -> Callable[..., Work]:
    """Register `function` for the op it is named after."""
    WORK[function.__name__] = function
    return function


def _count(*operands: Operand) -> int:
    return sum(math.prod(operand.shape) for operand in operands)


def _bytes(*operands: Operand | None) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in operands if x is not None)


@_work
def embedding(token_ids: Operand, weight: Operand, out: Operand) -> Work:
    """Only the rows that are asked for are read."""
    del weight
    return Work(0, _bytes(token_ids) + 2 * _bytes(out), out.dtype)


@_work
def select_rows(x: Operand, indices: Operand, out: Operand) -> Work:
    """The same."""
    del x
    return Work(0, _bytes(indices) + 2 * _bytes(out), out.dtype)


@_work
def linear(x: Operand, weight: Operand, bias: Operand | None, out: Operand) -> Work:
    """[T, K] times [K, N]: 2 T K N."""
    flops = 2 * _count(x) * weight.shape[0] + (0 if bias is None else _count(out))
    return Work(flops, _bytes(x, weight, bias, out), x.dtype)


@_work
def rms_norm(x: Operand, weight: Operand, out: Operand, *, eps: float) -> Work:
    """A square and a sum, a scale, a weight for each element."""
    del eps
    return Work(4 * _count(x), _bytes(x, weight, out), x.dtype)


@_work
def add_rms_norm(
    x: Operand, residual: Operand, weight: Operand, normed: Operand, total: Operand, *, eps: float
) -> Work:
    """One addition more."""
    del eps
    return Work(5 * _count(x), _bytes(x, residual, weight, normed, total), x.dtype)


@_work
def silu_mul(gate_up: Operand, out: Operand) -> Work:
    """An exponential, a quotient and two products for each output, each taken as one."""
    return Work(5 * _count(out), _bytes(gate_up, out), out.dtype)


@_work
def rope_angles(positions: Operand, inv_freq: Operand, out: Operand, *, scale: float) -> Work:
    """A product and a trigonometric function for each output."""
    del scale
    return Work(2 * _count(out), _bytes(positions, inv_freq, out), out.dtype)


@_work
def rope(x: Operand, angles: Operand, out: Operand, *, head_dim: int) -> Work:
    """Two products and an addition for each output."""
    del head_dim
    return Work(3 * _count(out), _bytes(x, angles, out), x.dtype)


@_work
def kv_write(key: Operand, value: Operand, cache: Any, slot_mapping: Operand) -> Work:
    """Read what was computed, write it in the cache's type; `cache` is its planes, or a recorded cache."""
    stored: DType = getattr(cache, "dtype", None) or cache[0].dtype
    return Work(0, _bytes(key, value, slot_mapping) + _count(key, value) * stored.itemsize, key.dtype)


def attention(
    query: Operand, out: Operand, kv_dtype: DType, *, head_dim: int, num_kv_heads: int, pairs: int, context: int
) -> Work:
    """Not in `WORK`, since it depends on what lies in its operands and not on their shapes alone.

    pairs: (query row, position it sees) summed over all rows; context: positions that are read, summed over sequences.
    Scores and sums are a product and an addition each for every pair, head and dimension: 4 in all.
    """
    heads = query.shape[1] // head_dim
    cache = 2 * context * num_kv_heads * head_dim * kv_dtype.itemsize
    return Work(4 * pairs * heads * head_dim, _bytes(query, out) + cache, query.dtype)
