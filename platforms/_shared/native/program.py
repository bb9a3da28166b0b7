"""A recorded program lowered to native calls: every address resolved once, every step one call without the GIL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from core.ops import ATTENTION_OPS
from core.platform import Bindings, Executable
from core.program import NUM_SEQS, NUM_TOKENS, Dim, OpCall, Storage, Value
from platforms._shared import _native
from platforms._shared.native.operands import cache_operand
from platforms._shared.native.ops import KERNELS, in_several_parts, native_calls
from platforms._shared.native.packed import PackedWeight
from platforms._shared.native.quantized import StackedWeight

_ROWS = {NUM_TOKENS.symbol: _native.Rows.tokens, NUM_SEQS.symbol: _native.Rows.seqs}


class NativeExecutable(Executable):
    """Runs at any step shape within the limits."""

    def __init__(self, program: _native.Program, bindings: Bindings) -> None:
        self._program = program
        self._bindings = bindings  # holds the memory that the program's addresses lie in

    def run(self, num_tokens: int, num_seqs: int) -> None:
        """Raises ValueError for a token id or a sequence that cannot be."""
        self._program.run(num_tokens, num_seqs)


def lower(bindings: Bindings) -> NativeExecutable | None:
    """The program as native calls, or None where it uses an op that has no native kernel, or has one eagerly alone."""
    if not bindings.program.ops_used() <= KERNELS.keys() | ATTENTION_OPS:
        return None
    program = _native.Program()
    for call in bindings.program.calls:
        operands = [_operand(bindings, value) for value in (*call.inputs, *call.outputs)]
        if call.op == "embedding" and in_several_parts(operands[1]):
            return None
        for native in native_calls(call.op, operands):
            getattr(program, call.op)(_rows(call), *native, **call.attrs)
    return NativeExecutable(program, bindings)


def _rows(call: OpCall) -> _native.Rows:
    value = (*call.outputs, *call.inputs)[0]
    assert value is not None and isinstance(value.shape[0], Dim), f"{call!r} has a fixed number of rows"
    return _ROWS[value.shape[0].symbol]


def _operand(bindings: Bindings, value: Value | None) -> Any:
    if value is None:
        return None
    if value.storage is Storage.CACHE:
        return cache_operand(bindings.handle(value))
    if value.storage is Storage.ACTIVATION:
        return _tensor(value, bindings.arena.data_ptr() + bindings.offsets[value.owner.index])
    handle = bindings.handle(value)
    if isinstance(handle, PackedWeight | StackedWeight):
        return handle
    assert isinstance(handle, Tensor)
    return _tensor(value, handle.data_ptr())


def _tensor(value: Value, address: int) -> _native.Tensor:
    """A matrix, or a vector: of one column where its length is the step's."""
    width, stride = (_fixed(size) for size in (value.shape[-1], value.owner.shape[-1]))
    if len(value.shape) == 1:
        stride = 1
    return _native.Tensor(address + value.offset * value.dtype.itemsize, value.dtype, width, stride)


def _fixed(size: int | Dim) -> int:
    return size if isinstance(size, int) else 1
