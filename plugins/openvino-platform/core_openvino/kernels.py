"""Each dense op alone: what runs where the program is not compiled, and what proves each lowering against its reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import openvino as ov
from openvino import opset13 as opset
from torch import Tensor

from core.errors import Unsupported
from core.platform import Kernel, KernelTable, Support
from core_openvino.device import Device
from core_openvino.lowering import LOWERINGS
from core_openvino.tensors import as_openvino, openvino_type


class OneOpKernels(KernelTable):
    """A model for each op and the shapes it is called with, compiled at the first such call; the tokens are left open."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._requests: dict[Any, ov.InferRequest] = {}

    def supports(self, op: str) -> Support:
        """Every op of the table that is not attention's."""
        if op in LOWERINGS:
            return Support(True)
        return Support(False, f"this plugin does not know op {op!r}")

    def get(self, op: str) -> Kernel:
        """The kernel. Raises Unsupported."""
        if op not in LOWERINGS:
            raise Unsupported(f"op {op}", self.supports(op).reason)
        return partial(self._run, op)

    def _run(self, op: str, *tensors: Tensor | None, **attrs: Any) -> None:
        """Views are copied on the way in and out: OpenVINO takes contiguous memory only."""
        count = len(tensors) - LOWERINGS[op].outputs
        inputs = [None if tensor is None else tensor.contiguous() for tensor in tensors[:count]]
        outputs = [tensor for tensor in tensors[count:] if tensor is not None]
        written = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in outputs]
        request = self._request(op, inputs, outputs, attrs)
        for index, given in enumerate(tensor for tensor in inputs if tensor is not None):
            request.set_input_tensor(index, as_openvino(given))
        for index, result in enumerate(written):
            request.set_output_tensor(index, as_openvino(result))
        request.infer()
        for target, result in zip(outputs, written, strict=True):
            if target is not result:
                target.copy_(result)

    def _request(
        self, op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], attrs: dict[str, Any]
    ) -> ov.InferRequest:
        signature = [None if x is None else (self._sizes(op, i, x), x.dtype) for i, x in enumerate(inputs)]
        key = (op, *signature, *(x.dtype for x in outputs), *sorted(attrs.items()))
        if key not in self._requests:
            nodes = [
                None if x is None else opset.parameter(self._sizes(op, index, x), openvino_type(x.dtype))
                for index, x in enumerate(inputs)
            ]
            read = [node for node in nodes if node is not None]
            types = [openvino_type(x.dtype) for x in outputs]
            results = LOWERINGS[op].lower([None if n is None else n.output(0) for n in nodes], attrs, types)
            self._requests[key] = self._device.compile(ov.Model(results, read, op)).create_infer_request()
        return self._requests[key]

    def _sizes(self, op: str, index: int, tensor: Tensor) -> tuple[int, ...]:
        """A weight's own; of the others the first is the step's tokens or sequences."""
        return tuple(tensor.shape) if index in LOWERINGS[op].weights else (-1, *tensor.shape[1:])
