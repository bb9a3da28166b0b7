"""The native kernels as the op table calls them, one by one: each call is a program of one op.

A weight may be a plain tensor; it is then packed for the call, which only tests and tools will want to wait for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from core.platform import Kernel
from platforms._shared import _native
from platforms._shared.native.memory import PackedWeight
from platforms._shared.native.operands import dtype_of, operand

#: By the place of a packed weight among their operands, if they have one.
_OPS: dict[str, int | None] = {
    "embedding": 1,
    "linear": 1,
    "select_rows": None,
    "rms_norm": None,
    "add_rms_norm": None,
    "silu_mul": None,
    "rope_angles": None,
    "rope": None,
}


def _run(op: str, *operands: Any, **attrs: Any) -> None:
    rows = operands[-1].shape[0]  # those of an output
    if rows == 0:
        return
    given = list(operands)
    place = _OPS[op]
    if place is not None and isinstance(given[place], Tensor):
        given[place] = PackedWeight.of(given[place], dtype_of(given[place]))
    program = _native.Program()
    getattr(program, op)(_native.Rows.tokens, *map(_native_operand, given), **attrs)
    program.run(rows, rows)


def _native_operand(given: Any) -> Any:
    if isinstance(given, Tensor):
        return operand(given)
    return given.native if isinstance(given, PackedWeight) else given


KERNELS: dict[str, Kernel] = {op: partial(_run, op) for op in _OPS}
