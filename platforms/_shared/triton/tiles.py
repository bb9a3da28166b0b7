"""In what tiles the kernels run on each target: data, chosen by target and shape, never searched for at run time.

A target is what a kernel is compiled for: an NVIDIA compute capability (`sm_90`), an AMD instruction set (`gfx942`), or
Triton's interpreter. What is not listed runs in the generic tiles, which fit every target that Triton has.
The tables were chosen by what they take of a target's registers and shared memory (`make compile-gpu-all` shows it); no
hardware has timed them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
class Tiles:
    """Tiles of one target. Each attention table goes by head_dim, the first whose key is at least that; float32 has
    its own, because its products run without matrix units. `linear` goes by rows in the same way."""

    decode: dict[int, AttentionTile]
    prefill: dict[int, AttentionTile]
    decode_float32: dict[int, AttentionTile]
    prefill_float32: dict[int, AttentionTile]
    linear: dict[int, LinearTile]
    columns: int = 1024  # that a program of an elementwise op, or of narrow norms, takes
    int8_kv: bool = True  # False: scaling int8 keys and values takes more registers than there are
    programs: int = 256  # that keep the device busy: a decode step's context is split until there are so many


MAX_HEAD_DIM = 256
MAX_SPLITS = 16
ALL = 1 << 30

GENERIC = Tiles(
    decode={128: AttentionTile(16, 32), 256: AttentionTile(16, 16)},
    prefill={64: AttentionTile(64, 64), 128: AttentionTile(64, 32), 256: AttentionTile(32, 16)},
    decode_float32={128: AttentionTile(16, 16, num_stages=1), 256: AttentionTile(16, 16, num_warps=8, num_stages=1)},
    prefill_float32={
        128: AttentionTile(32, 16, num_warps=8, num_stages=1),
        256: AttentionTile(16, 16, num_warps=8, num_stages=1),
    },
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
    columns=512,
    programs=12,
)


#: More shared memory and quicker copies into it: larger prefill tiles, more stages in flight.
_AMPERE = replace(
    GENERIC,
    decode={128: AttentionTile(16, 32, num_stages=3), 256: AttentionTile(16, 16)},
    prefill={64: AttentionTile(128, 64, num_stages=3), 128: AttentionTile(64, 64), 256: AttentionTile(32, 32)},
    linear={16: LinearTile(16, 64, 128), ALL: LinearTile(64, 128, 64)},
)
_HOPPER = replace(_AMPERE, prefill={128: AttentionTile(128, 64, num_warps=8), 256: AttentionTile(64, 32, num_warps=8)})
#: CDNA: 64 threads a warp, 64 KiB of shared memory, registers enough for more positions.
_CDNA = replace(
    GENERIC,
    decode={128: AttentionTile(16, 64), 256: AttentionTile(16, 32)},
    prefill={128: AttentionTile(64, 64), 256: AttentionTile(32, 32)},
)

#: RDNA: 256 registers a thread.
_RDNA = replace(
    GENERIC,
    decode={256: AttentionTile(16, 16, num_warps=8, num_stages=1)},
    decode_float32={256: AttentionTile(16, 16, num_warps=8, num_stages=1)},
    int8_kv=False,
)

#: By target; what is not here runs in GENERIC. `programs` is two for each multiprocessor or compute unit.
TARGETS = {
    "sm_80": replace(_AMPERE, programs=216),
    "sm_89": replace(GENERIC, programs=256),
    "sm_90": replace(_HOPPER, programs=264),
    "sm_100": replace(_HOPPER, programs=296),
    "gfx90a": replace(_CDNA, programs=208),
    "gfx942": replace(_CDNA, programs=608),
    "gfx1100": replace(_RDNA, programs=192),
}


def tiles_for(target: str) -> Tiles:
    """The tiles of a target by its name, like `sm_90` or `gfx942`."""
    return TARGETS.get(target, GENERIC)


def chosen(table: dict[int, _Tile], size: int) -> _Tile:
    """The tile of the smallest key that is at least `size`. Raises KeyError where there is none."""
    return table[min(key for key in table if key >= size)]
