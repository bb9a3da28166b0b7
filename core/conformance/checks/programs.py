"""Level ops: whole recorded models through the platform's own compiler, or op by op where it declines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core import ops
from core.config import Config
from core.conformance.bounds import LOGITS
from core.conformance.buffers import same_bits
from core.conformance.cases import Numbers
from core.conformance.checkpoints import families
from core.conformance.failures import NotClaimed, expect
from core.conformance.oracle import HostValue, evaluate, parameter_tensors, reference_cache
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.defaults import EagerExecutable, torch_dtype
from core.platform import AttentionBackend, AttentionQuery, Bindings, Bucket, Executable, Platform
from core.program import OpProgram, Storage
from core.recording import LOGITS as OUTPUT
from core.recording import RecordedModel, record_model
from core.types import DType

_BLOCKS = 24
_ALIGNMENT = 64


@dataclass(frozen=True)
class _Inputs:
    """One step's inputs by name. The first `seqs` sequences are real, what follows is padding."""

    arrays: Mapping[str, Tensor]
    seqs: int


class _Bound:
    """A tiny model on the device, with the same on the host beside it."""

    def __init__(self, subject: Subject, family: str) -> None:
        # On a platform of its own: one that captured a step may allocate nothing more.
        subject.release()
        self.config: Config = subject.planned(family, max_num_seqs=4, kv_cache_memory="8MiB").config
        self.model: RecordedModel = record_model(self.config)
        self.program: OpProgram = self.model.program
        self._subject = subject
        self._platform: Platform = subject.platform
        self._limits = max(subject.shapes())
        self.handles: dict[int, Any] = {}
        self.host: dict[int, HostValue] = dict(reference_cache(self.model, _BLOCKS, self.config.cache.block_size))
        self._attention = self._choose_attention()
        self._bind_weights(subject.checkpoint(family).tensors)
        self._bind_buffers()
        self._bind_caches()
        self.bindings = self._bindings()

    def _choose_attention(self) -> AttentionBackend:
        queries = [self._query(spec) for spec in self.model.attention_layers]
        for backend in self._platform.attention():
            if all(backend.supports(query) for query in queries):
                return backend
        raise NotClaimed("no attention backend serves this model op by op")

    def _query(self, spec: Any) -> AttentionQuery:
        return AttentionQuery(
            head_dim=spec.head_dim,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            window=spec.window,
            dtype=self.config.model.dtype,
            kv_dtype=self.config.cache.dtype,
            block_size=self.config.cache.block_size,
        )

    def _bind_weights(self, tensors: Mapping[str, Tensor]) -> None:
        for parameter, data in zip(self.model.parameters, parameter_tensors(self.model, tensors).values(), strict=True):
            value = parameter.value
            handle = self._subject.buffers.alloc(value.resolve(0, 0), value.dtype, "weights")
            self._subject.buffers.memory.upload(handle, data)
            self.handles[value.index] = handle
            self.host[value.index] = data.to(torch_dtype(value.dtype)).float()

    def _bind_buffers(self) -> None:
        for value in (*self.program.of(Storage.INPUT), *self.program.of(Storage.OUTPUT)):
            shape = value.resolve(self._limits.num_tokens, self._limits.num_seqs)
            self.handles[value.index] = self._subject.buffers.alloc(shape, value.dtype, "inputs")

    def _bind_caches(self) -> None:
        caches = self.program.named(Storage.CACHE)
        for spec in self.model.attention_layers:
            layout = self._attention.kv_layout(self._query(spec))
            shape = (_BLOCKS, *layout.block_shape)
            planes = tuple(self._subject.buffers.alloc(shape, layout.dtype, "kv") for _ in range(layout.planes))
            self.handles[caches[f"kv.{spec.layer}"].index] = planes

    def _bindings(self) -> Bindings:
        offsets, size = {}, 0
        for value in self.program.of(Storage.ACTIVATION):
            offsets[value.index] = size
            count = value.dtype.itemsize
            for length in value.resolve(self._limits.num_tokens, self._limits.num_seqs):
                count *= length
            size += -(-count // _ALIGNMENT) * _ALIGNMENT
        arena = self._subject.buffers.alloc((size,), DType.UINT8, "activations")
        return Bindings(self.program, self.handles, arena, offsets, self._limits, self._kernels())

    def _kernels(self) -> dict[str, Callable[..., None]]:
        table = self._platform.kernels()
        missing = [op for op in self.program.ops_used() - ops.ATTENTION_OPS if not table.supports(op)]
        if missing:
            raise NotClaimed(f"no kernel is claimed for {', '.join(sorted(missing))}")
        kernels = {op: table.get(op) for op in self.program.ops_used() - ops.ATTENTION_OPS}
        return {**kernels, "kv_write": self._attention.write_kv, "attention": self._attention.forward}

    # --- running ---

    def executable(self, bucket: Bucket) -> Executable:
        """What the runner would use: compiled for this bucket where buckets are declared, else for any shape."""
        compiled = self._platform.compile(self.bindings, bucket if self._subject.capabilities.buckets else None)
        return compiled if compiled is not None else EagerExecutable(self.bindings)

    def run(self, executable: Executable, inputs: _Inputs, shape: Bucket) -> Tensor:
        """The logits [seqs, vocab] of one step."""
        memory = self._subject.buffers.memory
        for name, value in self.program.named(Storage.INPUT).items():
            memory.upload(self.handles[value.index], inputs.arrays[name])
        executable.run(shape.num_tokens, shape.num_seqs)
        memory.synchronize()
        found: Tensor = memory.download(self.handles[self.program.named(Storage.OUTPUT)[OUTPUT].index])
        return found[: inputs.seqs].clone()

    def expected(self, inputs: _Inputs, shape: Bucket) -> Tensor:
        """The same by the references in float32; the host's caches take in the step's keys and values."""
        given = dict(self.host)
        for name, value in self.program.named(Storage.INPUT).items():
            given[value.index] = inputs.arrays[name]
        values = evaluate(self.program, given, shape.num_tokens, shape.num_seqs)
        found = values[self.program.named(Storage.OUTPUT)[OUTPUT].index]
        assert isinstance(found, Tensor)
        return found[: inputs.seqs]


def _step(bound: _Bound, numbers: Numbers, lengths: list[tuple[int, int]], shape: Bucket) -> _Inputs:
    """Inputs of sequences (context, new tokens), padded to `shape` as the runner pads. Sequence i owns its own blocks."""
    block, width = bound.config.cache.block_size, bound.model.max_blocks
    each = (_BLOCKS - 1) // max(len(lengths), 1)
    positions, slots, tables, starts = [], [], [], [0]
    for index, (length, new) in enumerate(lengths):
        blocks = torch.arange(each) + 1 + index * each
        own = torch.arange(length - new, length)
        positions.append(own)
        slots.append(blocks[own // block] * block + own % block)
        tables.append(torch.cat([blocks, torch.zeros(width, dtype=torch.long)])[:width])
        starts.append(starts[-1] + new)
    total = starts[-1]

    def padded(data: Tensor, rows: int, fill: int = 0) -> Tensor:
        out = torch.full((rows, *data.shape[1:]), fill, dtype=torch.int32)
        out[: len(data)] = data
        return out

    arrays = {
        "token_ids": padded(numbers.integers(bound.config.model.vocab_size, total), shape.num_tokens),
        "positions": padded(torch.cat(positions), shape.num_tokens),
        "query_start": padded(torch.tensor(starts), shape.num_seqs + 1, total),
        "seq_lens": padded(torch.tensor([length for length, _ in lengths]), shape.num_seqs),
        "logits_rows": padded(torch.tensor(starts[1:]) - 1, shape.num_seqs),
    }
    for group in range(len(bound.model.groups)):
        arrays[f"slot_mapping.{group}"] = padded(torch.cat(slots), shape.num_tokens)
        arrays[f"block_table.{group}"] = padded(torch.stack(tables), shape.num_seqs)
    return _Inputs(arrays, len(lengths))


def _sequences(shape: Bucket) -> Iterator[list[tuple[int, int]]]:
    """Two steps for a shape: prefills, then a decode of each, as far as the shape has room."""
    seqs = min(shape.num_seqs, shape.num_tokens, 3)
    tokens = min(shape.num_tokens, 48)
    lengths = [tokens // seqs - index % 2 * (tokens // seqs > 1) for index in range(seqs)]
    yield [(length, length) for length in lengths]
    yield [(length + 1, 1) for length in lengths]


def _expect_close(got: Tensor, wanted: Tensor, dtype: DType, what: str) -> None:
    error = float((got.float() - wanted).abs().max() / wanted.abs().max())
    limit = LOGITS[dtype]
    expect(error <= limit, f"{what}: logits are off by {error:.3g} of the largest, {limit:.3g} is allowed")


def _check_step(
    subject: Subject, bound: _Bound, executable: Executable, shape: Bucket, lengths: list[tuple[int, int]], what: str
) -> None:
    """Run one step, in the bucket `shape` where buckets are declared, else in its own shape, and compare its logits."""
    own = Bucket(sum(new for _, new in lengths), len(lengths))
    used = shape if subject.capabilities.buckets else own
    inputs = _step(bound, Numbers(f"{what} {lengths}"), lengths, used)
    got = bound.run(executable, inputs, used)
    _expect_close(got, bound.expected(inputs, used), subject.dtype, f"{what}, step of {own} run as {used}")


def _shapes(subject: Subject) -> list[Bucket]:
    return subject.shapes() if subject.capabilities.buckets else [Bucket(1, 1), Bucket(7, 3), Bucket(33, 2)]


@check(
    "programs.compiled", "ops", "what is compiled is what serves; kernels that are right alone may be joined wrongly"
)
def compiled(subject: Subject) -> None:
    """The executable of every bucket, or of several shapes, gives the logits of the recorded program."""
    bound = _Bound(subject, "llama")
    for shape in _shapes(subject):
        executable = bound.executable(shape)
        for lengths in _sequences(shape):
            _check_step(subject, bound, executable, shape, lengths, "llama")


@check("programs.fresh_inputs", "ops", "a graph that kept its first inputs repeats its first answer for ever")
def fresh_inputs(subject: Subject) -> None:
    """An executable that ran before computes what lies in its buffers now, step after step."""
    bound, shape = _Bound(subject, "llama"), _shapes(subject)[-1]
    executable, lengths = bound.executable(shape), next(_sequences(shape))
    for turn in range(4):
        _check_step(subject, bound, executable, shape, lengths, f"llama, turn {turn + 1} of one executable")


@check("programs.padding", "ops", "padding is there in nearly every step; what leaks from it is noise in an answer")
def padding(subject: Subject) -> None:
    """A step gives the same in its own bucket and in the largest, where most rows are padding."""
    subject.require(subject.capabilities.buckets, "capabilities().buckets")
    shapes = subject.shapes()
    for shape in sorted({shapes[0], shapes[len(shapes) // 2], shapes[-1]}):
        bound = _Bound(subject, "llama")
        inputs = _step(bound, Numbers("padding"), [(1, 1)], shape)
        before = [plane.clone() for plane in _live_blocks(bound, subject)]
        got = bound.run(bound.executable(shape), inputs, shape)
        _expect_close(got, bound.expected(inputs, shape), subject.dtype, f"llama, one token padded to {shape}")
        for old, new in zip(before, _live_blocks(bound, subject), strict=True):
            expect(same_bits(old[2:], new[2:]), f"one token padded to {shape} writes into a block that is not its own")


def _live_blocks(bound: _Bound, subject: Subject) -> list[Tensor]:
    caches = bound.program.of(Storage.CACHE)
    subject.buffers.memory.synchronize()
    return [subject.buffers.memory.download(plane) for value in caches for plane in bound.handles[value.index]]


@check("programs.architectures", "ops", "a window, a bias or a norm of q and k is in some models only")
def architectures(subject: Subject) -> None:
    """A prefill and a decode of every architecture that the core has."""
    shape = _shapes(subject)[-1]
    for family in families():
        bound = _Bound(subject, family)
        executable = bound.executable(shape)
        for lengths in _sequences(shape):
            _check_step(subject, bound, executable, shape, lengths, family)
