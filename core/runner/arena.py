"""Where activations lie: offsets in one buffer, reused as soon as a value has been read for the last time."""

from __future__ import annotations

from dataclasses import dataclass

from core.platform import Bucket
from core.program import OpProgram, Storage, Value

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class ArenaPlan:
    """Byte offset of each activation by Value.index, and the bytes they take together."""

    offsets: dict[int, int]
    size: int


def plan_arena(program: OpProgram, limits: Bucket) -> ArenaPlan:
    """First fit over the values' lifetimes, at the largest sizes that `limits` allow.

    The result does not depend on a step's own sizes: addresses are the same at every step.
    """
    last_use = _last_uses(program)
    live: list[tuple[int, int, int]] = []  # (offset, end, last call that reads it), by offset
    offsets: dict[int, int] = {}
    size = 0
    for position, call in enumerate(program.calls):
        live = [block for block in live if block[2] >= position]
        for value in call.outputs:
            if value.storage is not Storage.ACTIVATION:
                continue
            need = value_bytes(value, limits)
            offset = _first_fit(live, need)
            offsets[value.index] = offset
            live.append((offset, offset + need, last_use.get(value.index, position)))
            live.sort()
            size = max(size, offset + need)
    return ArenaPlan(offsets, size)


def value_bytes(value: Value, limits: Bucket) -> int:
    """Bytes of a value at the largest sizes, rounded up to the alignment."""
    count = value.dtype.itemsize
    for length in value.resolve(limits.num_tokens, limits.num_seqs):
        count *= length
    return -(-count // ALIGNMENT) * ALIGNMENT


def _last_uses(program: OpProgram) -> dict[int, int]:
    uses: dict[int, int] = {}
    for position, call in enumerate(program.calls):
        for value in call.inputs:
            if value is not None:
                uses[value.owner.index] = position
    return uses


def _first_fit(live: list[tuple[int, int, int]], need: int) -> int:
    offset = 0
    for start, end, _ in live:
        if start - offset >= need:
            break
        offset = max(offset, end)
    return offset
