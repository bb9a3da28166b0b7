"""Runs a program by calling its kernels one after the other: what every platform can do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from core.platform import Bindings, Executable
from core.program import OpCall, Storage, Value

_SHAPES_KEPT = 32

Step = list[Callable[[], None]]


def torch_dtype(name: str) -> torch.dtype:
    """torch's element type of that name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


class EagerExecutable(Executable):
    """Binds the kernels to tensors once for each step shape and keeps the latest shapes: decode repeats a few."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._steps: OrderedDict[tuple[int, int], Step] = OrderedDict()

    def run(self, num_tokens: int, num_seqs: int) -> None:
        """Any shape within the limits."""
        shape = (num_tokens, num_seqs)
        step = self._steps.get(shape)
        if step is None:
            step = self._steps[shape] = bind_step(self._bindings, num_tokens, num_seqs)
            if len(self._steps) > _SHAPES_KEPT:
                self._steps.popitem(last=False)
        else:
            self._steps.move_to_end(shape)
        for call in step:
            call()


def bind_step(bindings: Bindings, num_tokens: int, num_seqs: int) -> Step:
    """The program's calls with their tensors, for one step shape."""
    tensors: dict[int, Any] = {}

    def tensor(value: Value | None) -> Any:
        if value is None:
            return None
        if value.index not in tensors:
            tensors[value.index] = bound_tensor(bindings, value, num_tokens, num_seqs)
        return tensors[value.index]

    def bind(call: OpCall) -> Callable[[], None]:
        arguments = [tensor(value) for value in (*call.inputs, *call.outputs)]
        return partial(bindings.kernels[call.op], *arguments, **call.attrs)

    return [bind(call) for call in bindings.program.calls]


def bound_tensor(bindings: Bindings, value: Value, num_tokens: int, num_seqs: int) -> Any:
    """The torch tensor (or the planes of a cache) that `value` is at this step shape."""
    if value.storage is Storage.CACHE:
        return bindings.handle(value)
    owner = value.owner
    shape = owner.resolve(num_tokens, num_seqs)
    if owner.storage is Storage.ACTIVATION:
        whole = _arena_tensor(bindings, owner, shape)
    else:
        whole = bindings.handle(owner)[tuple(slice(size) for size in shape)]
    if value is owner:
        return whole
    width = value.shape[-1]
    assert isinstance(width, int), "a view's width is fixed when it is recorded"
    return whole[..., value.offset : value.offset + width]


def _arena_tensor(bindings: Bindings, value: Value, shape: tuple[int, ...]) -> torch.Tensor:
    count = value.dtype.itemsize
    for size in shape:
        count *= size
    start = bindings.offsets[value.index]
    memory: torch.Tensor = bindings.arena[start : start + count]
    return memory.view(torch_dtype(value.dtype)).view(shape)
