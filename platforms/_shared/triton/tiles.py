"""In what tiles the kernels run on each target: data, chosen by target and shape, never searched for at run time.

A target is what a kernel is compiled for: an NVIDIA compute capability (`sm_90`), an AMD instruction set (`gfx942`), or
Triton's interpreter. What is not listed runs in the generic tiles, which fit every target that Triton has.
`platforms/_shared/triton/machine_code.py` says what registers and shared memory each tile takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

_Tile = TypeVar("_Tile")


@dataclass(frozen=True)
class AttentionTile:
    """`block_m` rows (query heads of a KV head, times tokens) over `block_n` positions at a time."""

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True)
class LinearTile:
    """`block_m` rows times `block_n` outputs, `block_k` inputs at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Limits:
    """What a program may take: bytes of shared memory (LDS), 32-bit vector registers a thread; threads of a warp."""

    shared: int
    registers: int
    warp: int


@dataclass(frozen=True)
class Tiles:
    """Tiles of one target. Each attention table goes by head_dim, the first whose key is at least that; float32 has
    its own, because its products run without matrix units. `linear` goes by rows in the same way."""

    decode: dict[int, AttentionTile]
    prefill: dict[int, AttentionTile]
    decode_float32: dict[int, AttentionTile]
    prefill_float32: dict[int, AttentionTile]
    linear: dict[int, LinearTile]
    columns: int = 1024  # that a program of an elementwise op takes
    programs: int = 256  # that keep the device busy: a decode step's context is split until there are so many
    upcast_bfloat16: bool = False  # bfloat16 products in float32, where the target computes them wrongly
    limits: Limits = field(default_factory=lambda: Limits(shared=64 << 10, registers=255, warp=32))


MAX_HEAD_DIM = 256
MAX_SPLITS = 16
ALL = 1 << 30

GENERIC = Tiles(
    decode={128: AttentionTile(16, 32), 256: AttentionTile(16, 16)},
    prefill={64: AttentionTile(64, 64), 128: AttentionTile(64, 32), 256: AttentionTile(32, 16)},
    decode_float32={128: AttentionTile(16, 16, num_stages=1), 256: AttentionTile(16, 16, num_warps=8, num_stages=1)},
    prefill_float32={128: AttentionTile(32, 16, num_warps=8, num_stages=1), 256: AttentionTile(16, 16, num_warps=8, num_stages=1)},
    linear={16: LinearTile(16, 64, 64), ALL: LinearTile(64, 64, 32)},
)

#: Interpreted programs cost what they do, whatever their size, so tiles are large; but small enough that the tests'
#: shapes still take several of them.
INTERPRETER = Tiles(
    decode={256: AttentionTile(16, 32)},
    prefill={256: AttentionTile(32, 32)},
    decode_float32={256: AttentionTile(16, 32)},
    prefill_float32={256: AttentionTile(32, 32)},
    linear={16: LinearTile(16, 128, 64), ALL: LinearTile(64, 128, 128)},
    columns=128,
    programs=12,
    upcast_bfloat16=True,
)


def chosen(table: dict[int, _Tile], size: int) -> _Tile:
    """The tile of the smallest key that is at least `size`. Raises KeyError where there is none."""
    return table[min(key for key in table if key >= size)]
