"""A platform that captures a step once and replays it, with the rules that graph capture has on real devices.

While a shape is captured, every torch operation is noted with the persistent tensors it uses. A replay repeats the
noted operations on those very tensors: no kernel's Python runs, and whatever it read then is frozen. So a kernel that
reads a value on the host is refused when captured; an address that moved since, or memory that is allocated after
the first replay, raises. Two steps may be in flight.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from static_platform import StaticPlatform, _memory_info
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from core.defaults import ReferenceAttention, TorchMemory, bind_step
from core.errors import DeviceLost, OutOfDeviceMemory, Unsupported
from core.platform import AttentionBackend, Bindings, Bucket, Executable
from core.program import Storage
from core.types import DType

_READS_ON_HOST = frozenset(
    {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
)


class FakeGraphPlatform(StaticPlatform):
    """The static platform's shapes, each one captured."""

    max_in_flight = 2

    def _make_memory(self) -> TorchMemory:
        return SealedMemory("cpu", _memory_info)

    def attention(self) -> Sequence[AttentionBackend]:
        return (CapturableAttention(),)

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable:
        if bucket is None:
            raise Unsupported("a step of any shape", "a graph has one shape")
        memory = self._memory
        assert isinstance(memory, SealedMemory)
        return Graph(bindings, bucket, memory)


class SealedMemory(TorchMemory):
    """Allocates nothing once a graph has been replayed."""

    sealed = False

    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Tensor:
        if self.sealed:
            raise OutOfDeviceMemory(f"{usage}: {list(shape)} {dtype} was asked for after the first step")
        return super().alloc(shape, dtype, usage)


class CapturableAttention(ReferenceAttention):
    """Attention in which nothing depends on a value: every row against its sequence's whole block table, masked."""

    name = "capturable"

    def forward(
        self,
        query: Tensor,
        cache: Sequence[Tensor],
        block_table: Tensor,
        query_start: Tensor,
        seq_lens: Tensor,
        out: Tensor,
        *,
        head_dim: int,
        num_kv_heads: int,
        scale: float,
        window: int | None,
    ) -> None:
        num_seqs = seq_lens.shape[0]
        row = torch.arange(query.shape[0], dtype=torch.int32)
        seq = torch.bucketize(row, query_start[1:], right=True).clamp(max=num_seqs - 1)  # padding: the last one's
        position = (seq_lens - query_start[1:])[seq] + row
        keys, values = (
            plane[block_table.long()].transpose(2, 3).flatten(1, 2)[seq] for plane in cache
        )  # [T, L, KV, D]
        distance = position[:, None] - torch.arange(keys.shape[1])
        hidden = (distance < 0) | (distance >= (keys.shape[1] + 1 if window is None else window))
        q = query.view(query.shape[0], num_kv_heads, -1, head_dim)
        scores = torch.einsum("tkgd,tskd->tkgs", q, keys) * scale
        weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1)
        # What is hidden may be NaN (stale blocks), and 0 * NaN is NaN. Padding rows see nothing and become NaN.
        values = values.masked_fill(hidden[:, :, None, None], 0.0)
        out.copy_(torch.einsum("tkgs,tskd->tkgd", weights, values).flatten(1))


# --- capture and replay --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor that an earlier operation makes."""

    index: int


@dataclass
class _Operation:
    function: Any
    args: Any  # with a _Slot for each tensor made in the graph, and the persistent tensors themselves
    kwargs: Any
    makes: list[int]
    frees: list[int]


class Graph(Executable):
    """A captured step."""

    def __init__(self, bindings: Bindings, bucket: Bucket, memory: SealedMemory) -> None:
        self._bindings, self._bucket, self._memory = bindings, bucket, memory
        self._addresses = _addresses(bindings)
        with capture() as self._operations:
            for call in bind_step(bindings, bucket.num_tokens, bucket.num_seqs):
                call()

    def run(self, num_tokens: int, num_seqs: int) -> None:
        if Bucket(num_tokens, num_seqs) != self._bucket:
            raise Unsupported(f"a step of {num_tokens} tokens, {num_seqs} sequences", f"captured was {self._bucket}")
        if _addresses(self._bindings) != self._addresses:
            raise DeviceLost("a buffer moved after the graph was captured: the replay would use freed memory")
        self._memory.sealed = True
        replay(self._operations)


def replay(operations: Sequence[_Operation]) -> None:
    """Repeat captured operations, on the persistent tensors that they were captured with."""
    made: dict[int, Tensor] = {}
    for operation in operations:
        args, kwargs = tree_map_only(_Slot, lambda slot: made[slot.index], (operation.args, operation.kwargs))
        result = operation.function(*args, **kwargs)
        made.update(zip(operation.makes, tree_leaves(result), strict=False))  # none where it writes into an argument
        for index in operation.frees:
            del made[index]


def _addresses(bindings: Bindings) -> list[int]:
    program = bindings.program
    values = [v for storage in Storage if storage is not Storage.ACTIVATION for v in program.of(storage)]
    tensors = [bindings.arena, *tree_leaves([bindings.handle(value) for value in values])]
    return [tensor.data_ptr() for tensor in tensors]


@contextmanager
def capture() -> Iterator[list[_Operation]]:
    """Note every torch operation; raise on a read by the host."""
    operations: list[_Operation] = []
    with _RefuseHostReads(), _Capture(operations):
        yield operations
    needed: set[int] = set()
    for operation in reversed(operations):
        slots = {leaf.index for leaf in tree_leaves((operation.args, operation.kwargs)) if isinstance(leaf, _Slot)}
        operation.frees = sorted((slots | set(operation.makes)) - needed)
        needed |= slots


class _RefuseHostReads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in _READS_ON_HOST:
            _raise(f"Tensor.{name}")
        return func(*args, **(kwargs or {}))


class _Capture(TorchDispatchMode):
    """A tensor made here carries its slot as an attribute, so that it can be freed and is known while it lives."""

    def __init__(self, operations: list[_Operation]) -> None:
        super().__init__()
        self._operations = operations
        self._slots = itertools.count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _refuse_data_dependence(func, args)
        noted_args, noted_kwargs = tree_map_only(Tensor, lambda t: getattr(t, "slot", t), (args, kwargs))
        result = func(*args, **kwargs)
        makes = []
        if not func._schema.is_mutable:
            for tensor in tree_leaves(result):
                tensor.slot = _Slot(next(self._slots))
                makes.append(tensor.slot.index)
        self._operations.append(_Operation(func, noted_args, noted_kwargs, makes, []))
        return result


def _refuse_data_dependence(func: Any, args: Any) -> None:
    """What gives a value to the host, or a result whose size depends on one; an index is one if it is a mask."""
    indexes = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
    if indexes and any(leaf.dtype is torch.bool for leaf in tree_leaves(args[1]) if leaf is not None):
        _raise("a mask as an index")
    sized = torch.Tag.dynamic_output_shape in func.tags and not indexes
    if sized or torch.Tag.data_dependent_output in func.tags:
        _raise(str(func))


def _raise(what: str) -> None:
    raise Unsupported(f"{what} inside a step", "the host cannot read a value while a graph is captured")
