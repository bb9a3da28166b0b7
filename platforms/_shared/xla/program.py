"""A recorded program for one step shape: traced once, compiled, and run again from its hash.

torch_xla has two ways to run a program again: to trace it again, which costs the host about as much as a small model's
step, or to name it by its hash. The second is what its backend for `torch.compile` does; the functions used here are those of
`torch_xla._dynamo.dynamo_bridge`, in the one version that requirements/ pins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch_xla
from torch import Tensor
from torch_xla.debug import metrics
from torch_xla.utils.buffer_donor_context import alias_with_buffer_donor_config

from core.defaults import torch_dtype
from core.logs import get_logger
from core.platform import Bindings, Bucket, Executable
from core.program import OpCall, Storage, Value
from platforms._shared.xla.attention import Tiles, attend, cut_tiles, written
from platforms._shared.xla.ops import COMPUTE

log = get_logger("xla")
_xla = torch_xla._XLAC


class CompiledProgram(Executable):
    """Takes the handles' tensors and puts its results in their place. The caches' old memory becomes the new one's."""

    def __init__(self, bindings: Bindings, bucket: Bucket) -> None:
        """Compiles. Handles have their memory from here on."""
        torch_xla.sync(wait=True)  # what made the handles is no part of the program
        began, failures = time.monotonic(), _counted("PersistentCacheDeserializeFailure")
        self._caches = [plane for value in bindings.program.of(Storage.CACHE) for plane in bindings.handle(value)]
        self._results = [*self._caches, *(bindings.handle(value) for value in bindings.program.of(Storage.OUTPUT))]
        trace = _Trace(bindings, bucket)
        for call in bindings.program.calls:
            trace.call(call)
        self._hash, self._inputs = self._compile(trace.results(), _persistent(bindings))
        unread = _counted("PersistentCacheDeserializeFailure") > failures
        log.info(
            "%d tokens, %d sequences, %d positions: compiled in %.1f s%s",
            bucket.num_tokens,
            bucket.num_seqs,
            bucket.context,
            time.monotonic() - began,
            "; the program that was kept could not be read, and was made again" if unread else "",
        )

    def _compile(self, results: list[Tensor], persistent: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
        """The program's hash, and its inputs in its own order: handles, and constants that tracing made."""
        for plane in self._caches:
            _xla._set_buffer_donation(plane, True)
        with alias_with_buffer_donor_config():
            found = _xla._get_graph_hash(results)
            _xla._xla_warm_up_cache(results, [])
        by_id = {_xla._xla_get_tensor_id(handle): handle for handle in persistent}
        ids, values = _xla._get_tensors_xla_device_data_node(results)
        return found, [by_id.get(number, value) for number, value in zip(ids, values, strict=True)]

    def run(self, num_tokens: int, num_seqs: int) -> None:
        """One step of exactly the bucket's shape."""
        made = _xla._run_cached_graph(self._hash, self._inputs)
        for handle, result in zip(self._results, made, strict=True):
            _xla._replace_xla_tensor(handle, result)
        for plane in self._caches:
            _xla._set_buffer_donation(plane, True)


def _counted(counter: str) -> int:
    return metrics.counter_value(counter) or 0


def _persistent(bindings: Bindings) -> list[Tensor]:
    handles: list[Tensor] = []
    for handle in bindings.handles.values():
        handles.extend(handle if isinstance(handle, tuple) else (handle,))
    return handles


class _Trace:
    """The tensors of a program by Value.index; those of a cache are its planes, as the calls so far leave them."""

    def __init__(self, bindings: Bindings, bucket: Bucket) -> None:
        self._bindings = bindings
        self._bucket = bucket
        self._made: dict[int, Any] = {}
        self._tiles: dict[int, Tiles] = {}  # by the index of `query_start`

    def call(self, call: OpCall) -> None:
        """Trace one op."""
        operands = [self._tensor(value) for value in call.inputs]
        if call.op == "kv_write":
            self._write(call, *operands)
            return
        made = self._attend(call, *operands) if call.op == "attention" else COMPUTE[call.op](*operands, **call.attrs)
        for value, tensor in zip(call.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            self._made[value.index] = tensor.to(torch_dtype(value.dtype))

    def results(self) -> list[Tensor]:
        """The planes of every cache, then the outputs; an output has the step's rows only."""
        program = self._bindings.program
        planes = [plane for cache in program.of(Storage.CACHE) for plane in self._tensor(cache)]
        return [*planes, *(self._made[value.index] for value in program.of(Storage.OUTPUT))]

    def _write(self, call: OpCall, key: Tensor, value: Tensor, cache: Any, slots: Tensor) -> None:
        target = call.inputs[2]
        assert target is not None
        self._made[target.index] = tuple(
            written(plane, source, slots) for plane, source in zip(cache, (key, value), strict=True)
        )

    def _attend(
        self, call: OpCall, query: Tensor, cache: Any, block_table: Tensor, query_start: Tensor, seq_lens: Tensor
    ) -> Tensor:
        starts = call.inputs[3]
        assert starts is not None
        tiles = self._tiles.get(starts.index)
        if tiles is None:
            tiles = self._tiles[starts.index] = cut_tiles(query.shape[0], query_start, seq_lens)
        if self._bucket.context:
            block_size = cache[0].shape[1]
            block_table = block_table[:, : -(-self._bucket.context // block_size)]
        return attend(query, cache, block_table, tiles, **call.attrs)

    def _tensor(self, value: Value | None) -> Any:
        if value is None:
            return None
        owner = value.owner
        whole = self._made.get(owner.index)
        if whole is None:
            whole = self._made[owner.index] = self._persistent(owner)
        if value is owner:
            return whole
        width = value.shape[-1]
        assert isinstance(width, int), "a view's width is fixed when it is recorded"
        return whole[..., value.offset : value.offset + width]

    def _persistent(self, value: Value) -> Any:
        handle = self._bindings.handle(value)
        if value.storage in (Storage.CACHE, Storage.WEIGHT):
            return handle
        return handle[: value.resolve(self._bucket.num_tokens, self._bucket.num_seqs)[0]]
