"""The recorded form of a model's forward: ops in order, their buffers, symbolic sizes. Torch-free data.

A model is recorded once (`core.ops` appends the calls, `recording` guards them) and every platform works from the
record: it interprets it, lowers it to native calls, captures it as a graph, or converts it for a compiler.

Sizes are ints or a `Dim`: `NUM_TOKENS`, the tokens of the step over all sequences, and `NUM_SEQS`, its sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn

from core.errors import RecordingError
from core.types import DType


@dataclass(frozen=True)
class Dim:
    """A size known only at run time: the step's value of `symbol`, plus `offset`."""

    symbol: str
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.symbol}+{self.offset}" if self.offset else self.symbol


NUM_TOKENS = Dim("num_tokens")
NUM_SEQS = Dim("num_seqs")

Size = int | Dim
Shape = tuple[Size, ...]


class Storage(Enum):
    """Who owns a value's memory, and how long it lives."""

    INPUT = "input"  # persistent; the runner fills it before each step
    WEIGHT = "weight"  # persistent; filled once at load
    CACHE = "cache"  # persistent; one layer's KV blocks, in the attention backend's layout
    ACTIVATION = "activation"  # lives from the call that writes it to the last that reads it
    OUTPUT = "output"  # persistent; read by the runner after the step


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the program. A *view* shares `base`'s memory: columns `offset : offset + shape[-1]` of it."""

    index: int
    name: str
    shape: Shape
    dtype: DType
    storage: Storage
    base: Value | None = None
    offset: int = 0

    @property
    def owner(self) -> Value:
        """The value whose memory this one lies in: itself unless it is a view."""
        return self if self.base is None else self.base

    def resolve(self, num_tokens: int, num_seqs: int) -> tuple[int, ...]:
        """The shape at a step of that many tokens and sequences."""
        symbols = {NUM_TOKENS.symbol: num_tokens, NUM_SEQS.symbol: num_seqs}
        return tuple(size if isinstance(size, int) else symbols[size.symbol] + size.offset for size in self.shape)

    def __repr__(self) -> str:
        return f"%{self.index}:{self.name}{[str(size) for size in self.shape]}:{self.dtype}"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise RecordingError(
            f"a model's forward called {getattr(func, '__qualname__', func)} on a recorded value; "
            "only the ops of core.ops can be recorded: use one of them, or add an op with its reference there"
        )


@dataclass(frozen=True, eq=False)
class OpCall:
    """One op: a kernel is called as `kernel(*inputs, *outputs, **attrs)` and writes its outputs in place."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any]

    def __repr__(self) -> str:
        return (
            f"{', '.join(map(repr, self.outputs))} = {self.op}({', '.join(map(repr, self.inputs))}, {dict(self.attrs)})"
        )


@dataclass
class OpProgram:
    """The ops of one forward in order, and every value by its role."""

    values: list[Value] = field(default_factory=list)
    calls: list[OpCall] = field(default_factory=list)

    def of(self, storage: Storage) -> list[Value]:
        """The values of one storage class that own memory, in the order they were made."""
        return [value for value in self.values if value.storage is storage and value.base is None]

    def named(self, storage: Storage) -> dict[str, Value]:
        """The same by name."""
        return {value.name: value for value in self.of(storage)}

    def ops_used(self) -> set[str]:
        """Names of the ops that a platform must have to run this program."""
        return {call.op for call in self.calls}

    # --- building ---

    def new(self, name: str, shape: Shape, dtype: DType, storage: Storage) -> Value:
        """Declare a value; `name` is unique among inputs, weights, caches and outputs."""
        value = Value(len(self.values), name, shape, dtype, storage)
        self.values.append(value)
        return value

    def view(self, base: Value, name: str, offset: int, width: int) -> Value:
        """Columns `offset : offset + width` of a two-dimensional value, sharing its memory."""
        owner = base.owner
        value = Value(
            len(self.values), name, (*base.shape[:-1], width), base.dtype, base.storage, owner, base.offset + offset
        )
        self.values.append(value)
        return value

    def call(
        self,
        op: str,
        inputs: tuple[Value | None, ...],
        outputs: tuple[tuple[Shape, DType], ...],
        **attrs: Any,
    ) -> tuple[Value, ...]:
        """Append a call and return its outputs, as new activations."""
        made = tuple(self.new(op, shape, dtype, Storage.ACTIVATION) for shape, dtype in outputs)
        self.calls.append(OpCall(op, inputs, made, attrs))
        return made

    def keep(self, value: Value, name: str) -> Value:
        """Make an activation an output of the program, under `name`."""
        if value.base is not None or value.storage is not Storage.ACTIVATION:
            raise RecordingError(f"output {name!r} must be an op's own result, not a view, an input or a weight")
        kept = Value(value.index, name, value.shape, value.dtype, Storage.OUTPUT)
        self.values[value.index] = kept
        self._replace(value, kept)
        return kept

    def _replace(self, old: Value, new: Value) -> None:
        def swap(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(new if value is old else value for value in values)

        self.calls = [OpCall(call.op, swap(call.inputs), swap(call.outputs), call.attrs) for call in self.calls]


# --- recording -----------------------------------------------------------------------------------------------

_current: ContextVar[OpProgram | None] = ContextVar("core_recording", default=None)

#: Made by `core.ops`: a context manager that raises on any tensor operation that bypasses the op table.
Guard = Callable[[], Any]


def current_program() -> OpProgram:
    """The program being recorded. Raises RecordingError outside `recording`."""
    program = _current.get()
    if program is None:
        raise RecordingError("ops can be called only while a model is being recorded (core.ops.record)")
    return program


@contextmanager
def recording(program: OpProgram) -> Iterator[OpProgram]:
    """Let the functions of `core.ops` append to `program` inside this context."""
    token = _current.set(program)
    try:
        yield program
    finally:
        _current.reset(token)
