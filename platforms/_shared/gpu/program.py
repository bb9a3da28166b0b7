"""A program on a GPU: steps of few tokens replayed from captured graphs, larger ones launched op by op.

A captured step has its size's shape, so the inputs of a smaller one are padded: tokens that belong to no sequence, whose
keys go to the null block. Any step that fits a size can use it, decode or not, since no launch depends on a value.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from core.defaults import EagerExecutable, Step, bind_step
from core.platform import Bindings, Executable, Kernel
from core.program import OpCall, OpProgram, Storage, Value
from platforms._shared.gpu.device import Device, Replay

#: Tokens, and sequences, of the steps that are captured: what a batch of decodes is padded to wastes a quarter at most,
#: beyond the smallest.
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class GpuExecutable(Executable):
    """Captures every size within the limits when it is made, the largest first, whose memory the others then use."""

    def __init__(self, bindings: Bindings, device: Device) -> None:
        self._eager = EagerExecutable(bindings)
        self._padded = PaddedInputs(bindings)
        self._graphs: dict[int, Replay] = {}
        if not device.graphs:
            return
        most = min(bindings.limits.num_tokens, bindings.limits.num_seqs)
        for size in sorted((size for size in SIZES if size <= most), reverse=True):
            self._padded.clear(size)
            self._graphs[size] = device.capture(partial(_run, bind_step(bindings, size, size)))

    def run(self, num_tokens: int, num_seqs: int) -> None:
        """Any shape within the limits."""
        wanted = max(num_tokens, num_seqs)
        size = min((size for size in self._graphs if size >= wanted), default=None)
        if size is None:
            self._eager.run(num_tokens, num_seqs)
            return
        self._padded.pad(num_tokens, num_seqs, size)
        self._graphs[size]()

    def close(self) -> None:
        """Give the graphs' memory back."""
        self._graphs.clear()


def _run(step: Step) -> None:
    for call in step:
        call()


class PaddedInputs:
    """A program's inputs, filled up to a larger step's: with zeros, but for `query_start`, which goes on as it ends."""

    def __init__(self, bindings: Bindings) -> None:
        program = bindings.program
        self._inputs = [(value, bindings.handle(value)) for value in program.of(Storage.INPUT)]
        self._starts = {call.inputs[3].index for call in program.calls if call.op == "attention" and call.inputs[3]}

    def pad(self, num_tokens: int, num_seqs: int, size: int) -> None:
        """Whatever an earlier step left between this step and `size` tokens and sequences."""
        for value, handle in self._inputs:
            own, whole = value.resolve(num_tokens, num_seqs)[0], value.resolve(size, size)[0]
            if own < whole:
                handle[own:whole].fill_(num_tokens if value.index in self._starts else 0)

    def clear(self, size: int) -> None:
        """A step of padding alone."""
        self.pad(0, 0, size)


# --- joining a rotation with the write into the cache --------------------------------------------------------


def fused(bindings: Bindings, write_rotated_kv: Kernel) -> Bindings:
    """Each `rope` whose result is only written to the cache, and that `kv_write`, as one call of `rope_kv_write`.

    It takes the place of the rotation: what that reads may be overwritten afterwards.
    """
    program = bindings.program
    calls: list[OpCall | None] = list(program.calls)
    for at, write in enumerate(program.calls):
        rotation = _rotation_of(program, at) if write.op == "kv_write" else None
        if rotation is None:
            continue
        key, angles = program.calls[rotation].inputs
        calls[rotation] = OpCall("rope_kv_write", (key, angles, *write.inputs[1:]), (), {})
        calls[at] = None
    joined = OpProgram(program.values, [call for call in calls if call is not None])
    return replace(bindings, program=joined, kernels={**bindings.kernels, "rope_kv_write": write_rotated_kv})


def _rotation_of(program: OpProgram, at: int) -> int | None:
    """The call of the rotation that can be joined with the `kv_write` at `at`, which must find the values there."""
    rotated, value = program.calls[at].inputs[:2]
    assert rotated is not None and value is not None
    readers = sum(_reads(call, rotated) for call in program.calls)
    for index, call in enumerate(program.calls[:at]):
        if call.op == "rope" and rotated.owner in call.outputs and readers == 1:
            angles = call.inputs[1]
            whole = angles is not None and angles.shape[1] == call.attrs["head_dim"]
            made = any(value.owner in earlier.outputs for earlier in program.calls[:index])
            return index if whole and made else None
    return None


def _reads(call: OpCall, value: Value) -> int:
    return sum(each is not None and each.owner is value.owner for each in call.inputs)
