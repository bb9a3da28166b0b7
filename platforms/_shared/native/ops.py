"""The native kernels as the op table calls them, one by one: each call is a program of one op.

A weight may be a plain tensor; it is then packed for the call, which only tests and tools will want to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from core.platform import Kernel
from platforms._shared import _native
from platforms._shared.native.operands import dtype_of, operand
from platforms._shared.native.packed import PackedWeight
from platforms._shared.native.quantized import StackedWeight

#: By the place of a weight among their operands, if they have one.
_OPS: dict[str, int | None] = {
    "embedding": 1,
    "linear": 1,
    "select_rows": None,
    "rms_norm": None,
    "add_rms_norm": None,
    "silu_mul": None,
    "rope_angles": None,
    "rope": None,
    "add": None,
    "add_layer_norm": None,
    "activation": None,
    "encoder_attention": None,
    "mean_rows": None,
}


def _run(op: str, *operands: Any, **attrs: Any) -> None:
    rows = operands[-1].shape[0]  # those of an output
    if rows == 0:
        return
    given = list(operands)
    place = _OPS[op]
    if place is not None and isinstance(given[place], Tensor):
        given[place] = PackedWeight.of(given[place], dtype_of(given[place]))
    if op == "embedding" and in_several_parts(given[1]):
        given[-1].copy_(given[1].read()[given[0].long()])  # no model has one: for the contract's sake
        return
    program = _native.Program()
    for native in native_calls(op, [operand(each) if isinstance(each, Tensor) else each for each in given]):
        getattr(program, op)(_native.Rows.tokens, *native, **attrs)
    program.run(*_sizes(op, operands))


def _sizes(op: str, operands: Sequence[Any]) -> tuple[int, int]:
    """Tokens and sequences of a step of one op: most have rows of one kind, and do not tell of which."""
    rows = operands[-1].shape[0]
    if op == "encoder_attention":
        return rows, operands[3].shape[0] - 1
    return (operands[0].shape[0], rows) if op == "mean_rows" else (rows, rows)


def in_several_parts(weight: Any) -> bool:
    """Whether a product with it takes several calls."""
    return isinstance(weight, StackedWeight) and len(weight.parts) > 1


def native_calls(op: str, operands: Sequence[Any]) -> Iterator[list[Any]]:
    """The operands of the native calls that an op comes to: one, or one a part of a stacked weight."""
    place = _OPS.get(op)
    weight = None if place is None else operands[place]
    if isinstance(weight, PackedWeight):
        yield [each.native if each is weight else each for each in operands]
    elif not isinstance(weight, StackedWeight):
        yield list(operands)
    elif op == "embedding":
        (part,) = weight.parts
        yield [operands[0], part.weight.native, operands[2]]
    else:  # linear: a part's outputs are columns
        x, _, bias, out = operands
        for part in weight.parts:
            own = [each and each.slice(part.row, part.rows) for each in (bias, out)]
            yield [x, part.weight.native, *own]


KERNELS: dict[str, Kernel] = {op: partial(_run, op) for op in _OPS}
