"""An operation of an OpenVINO model that calls back into Python: what runs between OpenVINO's own operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import ref

import openvino as ov


class Host(Protocol):
    """What the operations of one model call."""

    compiled: bool  # whether OpenVINO has made the model ready to run

    def call(self, index: int, inputs: Sequence[ov.Tensor], output: ov.Tensor) -> None:
        """Carry out the program's call `index` on the memory that OpenVINO planned; none of it may be kept."""


class HostOp(ov.Op):  # type: ignore[misc]  # OpenVINO ships no types
    """Carries out one call of a program on its host.

    Its one output has the rows and the type of its first input, and `width` columns. Without a width it is one int32
    that says nothing: OpenVINO orders operations by their data alone, so a write into the KV cache, which it does not
    see, gives one, and what reads the cache takes it as its last input.

    OpenVINO never lets go of an operation that is written in Python. So the host is held weakly, or it would stay in
    memory for ever; and so the copy that OpenVINO asks of every operation in every step, to infer its shape, is one
    that is used again.
    """

    def __init__(self, inputs: Sequence[ov.Output], index: int, host: ref[Host], width: int | None) -> None:
        super().__init__(self)
        self._index, self._host, self._width = index, host, width
        self._copy: HostOp | None = None
        self.set_arguments(list(inputs))
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        """The output's type and shape."""
        if self._width is None:
            self.set_output_type(0, ov.Type.i32, ov.PartialShape([1]))
        else:
            rows = self.get_input_partial_shape(0)[0]
            self.set_output_type(0, self.get_input_element_type(0), ov.PartialShape([rows, self._width]))

    def clone_with_new_inputs(self, new_inputs: Sequence[ov.Output]) -> HostOp:
        """The same call on other inputs: a new operation while the model is being built, one and the same later."""
        host = self._host()
        if host is None or not host.compiled:
            return HostOp(new_inputs, self._index, self._host, self._width)
        if self._copy is None:
            self._copy = HostOp(new_inputs, self._index, self._host, self._width)
        else:
            self._copy.set_arguments(list(new_inputs))
            self._copy.validate_and_infer_types()
        return self._copy

    def get_type_info(self) -> ov.DiscreteTypeInfo:
        """A name for the operation, which must not be one of OpenVINO's."""
        return ov.DiscreteTypeInfo("HostOp", "core_openvino")

    def visit_attributes(self, visitor: Any) -> bool:
        """Its place in the program, so that no two are taken for equal and made one."""
        visitor.on_attributes({"index": self._index})
        return True

    def has_evaluate(self) -> bool:
        """It is run by `evaluate`."""
        return True

    def evaluate(self, outputs: Sequence[ov.Tensor], inputs: Sequence[ov.Tensor]) -> bool:
        """Called by OpenVINO when the inputs are there."""
        host = self._host()
        assert host is not None, "the model is run by what holds its host"
        host.call(self._index, inputs, outputs[0])
        return True
