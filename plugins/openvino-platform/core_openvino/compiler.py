"""The recorded program as one OpenVINO model, and its run.

Dense ops become OpenVINO operations (`core_openvino.lowering`); the ops of the attention backend stay kernels, called
from within the model (`core_openvino.host_op`). Weights are constants over the engine's own memory; a step's inputs
and the program's outputs are bound where they lie, so a step copies nothing in or out. Activations are OpenVINO's: it
plans their memory over the whole model, and the arena is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

import openvino as ov
from openvino import opset13 as opset
from torch import Tensor

from core.defaults import bound_tensor
from core.errors import DeviceLost, Unsupported
from core.ops import ATTENTION_OPS
from core.platform import Bindings, Executable
from core.program import OpCall, Storage, Value
from core_openvino.attention import PagedAttention
from core_openvino.device import Device
from core_openvino.host_op import Host, HostOp
from core_openvino.lowering import LOWERINGS, columns
from core_openvino.tensors import ELEMENT_TYPES, as_openvino, as_torch


class CompiledProgram(Executable):
    """One model for every step shape."""

    def __init__(self, bindings: Bindings, device: Device, attention: PagedAttention) -> None:
        self._attention = attention
        self._step = _Step(bindings)
        graph = _Graph(bindings, ref(self._step))
        self._inputs, self._outputs = list(graph.parameters), list(graph.results)
        self._request = device.compile(graph.model()).create_infer_request()
        self._step.compiled = True

    def run(self, num_tokens: int, num_seqs: int) -> None:
        """Any shape within the limits. Raises DeviceLost where OpenVINO fails."""
        if (num_tokens, num_seqs) != self._step.shape:
            self._bind(num_tokens, num_seqs)
        with self._attention.step():
            self._infer()

    def _bind(self, num_tokens: int, num_seqs: int) -> None:
        """Lay the model's inputs and outputs over the engine's buffers, cut to the step."""
        self._step.begin(num_tokens, num_seqs)
        for index, value in enumerate(self._inputs):
            self._request.set_input_tensor(index, as_openvino(self._step.tensor(value)))
        for index, value in enumerate(self._outputs):
            self._request.set_output_tensor(index, as_openvino(self._step.tensor(value)))

    def _infer(self) -> None:
        self._step.failure = None
        try:
            self._request.infer()
        except RuntimeError as error:
            tokens, seqs = self._step.shape
            raise DeviceLost(f"OpenVINO failed in a step of {tokens} tokens, {seqs} sequences: {error}") from error
        if self._step.failure is not None:
            raise self._step.failure


class _Step:
    """The engine's tensors at one step shape, and the kernels that are called in the middle of the model."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._bound: dict[int, Any] = {}  # by Value.index
        self.shape = (0, 0)
        self.compiled = False
        self.failure: Exception | None = None  # of a kernel, to be raised once OpenVINO is done

    def begin(self, num_tokens: int, num_seqs: int) -> None:
        """From here on steps have this shape."""
        self.shape = (num_tokens, num_seqs)
        self._bound.clear()

    def tensor(self, value: Value) -> Any:
        """A persistent value: a tensor, or a cache's planes."""
        if value.index not in self._bound:
            self._bound[value.index] = bound_tensor(self._bindings, value, *self.shape)
        return self._bound[value.index]

    def call(self, index: int, inputs: Sequence[ov.Tensor], output: ov.Tensor) -> None:
        """Activations come from OpenVINO, whole; what else a kernel reads is the engine's.

        A kernel's exception is kept: OpenVINO passes on its text alone, and a process in which a Python exception went
        through its threads was seen to crash later. The step's other kernels are left out.
        """
        if self.failure is None:
            try:
                self._kernel(self._bindings.program.calls[index], inputs, output)
            except Exception as error:
                self.failure = error

    def _kernel(self, call: OpCall, inputs: Sequence[ov.Tensor], output: ov.Tensor) -> None:
        given = iter(inputs)
        arguments = [
            _view(value, as_torch(next(given))) if _is_activation(value) else self.tensor(value)
            for value in call.inputs
            if value is not None
        ]
        outputs = [as_torch(output)] if call.outputs else []
        self._bindings.kernels[call.op](*arguments, *outputs, **call.attrs)


def _is_activation(value: Value) -> bool:
    """Whether a value is made within the model (an output is, too)."""
    return value.owner.storage in (Storage.ACTIVATION, Storage.OUTPUT)


def _view(value: Value, whole: Tensor) -> Tensor:
    """The columns of its owner that a value is."""
    if value is value.owner:
        return whole
    return whole[:, value.offset : value.offset + _width(value)]


def _width(value: Value) -> int:
    width = value.shape[-1]
    assert isinstance(width, int), "columns are fixed when a program is recorded"
    return width


class _Graph:
    """Translates a program, call by call."""

    def __init__(self, bindings: Bindings, host: ref[Host]) -> None:
        self._bindings = bindings
        self._host = host
        self._nodes: dict[int, ov.Output] = {}  # by Value.index
        self._written: dict[int, ov.Output] = {}  # the last write into each cache, by Value.index
        self.parameters: dict[Value, Any] = {}
        self.results: dict[Value, ov.Output] = {}
        for index, call in enumerate(bindings.program.calls):
            if call.op in ATTENTION_OPS:
                self._attend(index, call)
            else:
                self._dense(call)

    def model(self) -> ov.Model:
        """The whole of it. Writes that nothing reads are results too, or OpenVINO would drop them."""
        return ov.Model([*self.results.values(), *self._written.values()], list(self.parameters.values()), "core")

    def _dense(self, call: OpCall) -> None:
        lowering = LOWERINGS.get(call.op)
        if lowering is None:
            raise Unsupported(f"op {call.op}", "this plugin does not know it; --no-compile runs the op's reference")
        inputs = [None if value is None else self._node(value) for value in call.inputs]
        types = [ELEMENT_TYPES[value.dtype] for value in call.outputs]
        for value, node in zip(call.outputs, lowering.lower(inputs, call.attrs, types), strict=True):
            self._keep(value, node)

    def _attend(self, index: int, call: OpCall) -> None:
        """Attention's ops: of their inputs the model gives the activations, and the order in which a cache is used."""
        read = [value for value in call.inputs if value is not None and _is_activation(value)]
        (cache,) = (value for value in call.inputs if value is not None and value.storage is Storage.CACHE)
        before = [self._written[cache.index]] if cache.index in self._written else []
        nodes = [*(self._node(value.owner) for value in read), *before]
        width = _width(call.outputs[0]) if call.outputs else None
        made = HostOp(nodes, index, self._host, width).output(0)
        if call.outputs:
            self._keep(call.outputs[0], made)
        else:
            self._written[cache.index] = made

    def _keep(self, value: Value, node: ov.Output) -> None:
        self._nodes[value.index] = node
        if value.storage is Storage.OUTPUT:
            self.results[value] = node

    def _node(self, value: Value) -> ov.Output:
        if value.index not in self._nodes:
            self._nodes[value.index] = self._made(value)
        return self._nodes[value.index]

    def _made(self, value: Value) -> ov.Output:
        if value is not value.owner:
            return columns(self._node(value.owner), value.offset, _width(value))
        if value.storage is Storage.WEIGHT:
            return ov.op.Constant(as_openvino(self._bindings.handle(value)), shared_memory=True).output(0)
        sizes = [size if isinstance(size, int) else -1 for size in value.shape]
        parameter = opset.parameter(sizes, ELEMENT_TYPES[value.dtype], name=value.name)
        self.parameters[value] = parameter
        return parameter.output(0)
