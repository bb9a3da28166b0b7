"""OpenVINO's CPU device, with this platform's settings."""

from __future__ import annotations

import openvino as ov
import openvino.properties as props
from openvino.properties import hint

NAME = "CPU"


class Device:
    """Compiles models. One of OpenVINO's cores serves a process."""

    def __init__(self, threads: int) -> None:
        self._core = ov.Core()
        self._threads = threads

    def has_bfloat16(self) -> bool:
        """Whether the processor multiplies bfloat16 itself; where not, OpenVINO would compute such a model in float32."""
        return "BF16" in self._core.get_property(NAME, props.device.capabilities)

    def compile(self, model: ov.Model) -> ov.CompiledModel:
        """For one request at a time on all threads, each operation in the element types that the model states.

        Left to itself OpenVINO computes float32 models in bfloat16 on some processors. Operations that the model
        states in bfloat16 are bfloat16's under this setting too.
        """
        settings = {
            hint.inference_precision: ov.Type.f32,
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            props.inference_num_threads: self._threads,
        }
        return self._core.compile_model(model, NAME, settings)
