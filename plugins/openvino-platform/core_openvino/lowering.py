"""Each op of the op table as OpenVINO operations.

A lowering gets the op's inputs as graph outputs (None for an absent bias), its attributes and the element types of its
outputs, and gives the outputs. Shapes are those of `core.ops`; the first dimension is dynamic, the others are fixed.
Norms, rotations and activations are computed in float32 and rounded once, as the references do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

Inputs = Sequence[ov.Output | None]
Types = Sequence[ov.Type]
Lower = Callable[[Inputs, Mapping[str, Any], Types], list[ov.Output]]


@dataclass(frozen=True)
class Lowering:
    """How an op is translated, which of its inputs are weights (all their sizes are fixed), and what it writes."""

    lower: Lower
    weights: tuple[int, ...] = ()
    outputs: int = 1


LOWERINGS: dict[str, Lowering] = {}

_LAST = -1


def lowering(*, weights: tuple[int, ...] = (), outputs: int = 1) -> Callable[[Lower], Lower]:
    """Register a function for the op it is named after."""

    def register(function: Lower) -> Lower:
        LOWERINGS[function.__name__] = Lowering(function, weights, outputs)
        return function

    return register


@lowering(weights=(1,))
def embedding(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    token_ids, weight = inputs
    return [_out(opset.gather(weight, token_ids, 0))]


@lowering()
def select_rows(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    x, indices = inputs
    return [_out(opset.gather(x, indices, 0))]


@lowering(weights=(1, 2))
def linear(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    x, weight, bias = inputs
    product = opset.matmul(x, weight, False, True)
    return [_convert(_out(product if bias is None else opset.add(product, bias)), types[0])]


@lowering(weights=(1,))
def rms_norm(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    x, weight = inputs
    assert x is not None and weight is not None
    return [_rms_norm(x, weight, attrs["eps"])]


@lowering(weights=(2,), outputs=2)
def add_rms_norm(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    x, residual, weight = inputs
    assert weight is not None
    total = _out(opset.add(x, residual))
    return [_rms_norm(total, weight, attrs["eps"]), total]


@lowering()
def silu_mul(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    (gate_up,) = inputs
    gate, up = opset.split(gate_up, _LAST, 2).outputs()
    activated = _convert(_out(opset.swish(_convert(gate, ov.Type.f32))), types[0])
    return [_out(opset.multiply(activated, up))]


@lowering(weights=(1,))
def rope_angles(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    positions, inv_freq = inputs
    assert positions is not None
    column = opset.unsqueeze(_convert(positions, ov.Type.f32), 1)
    angles = opset.multiply(column, opset.unsqueeze(inv_freq, 0))
    both = opset.concat([opset.cos(angles), opset.sin(angles)], _LAST)
    return [_out(both if attrs["scale"] == 1.0 else opset.multiply(both, np.float32(attrs["scale"])))]


@lowering()
def rope(inputs: Inputs, attrs: Mapping[str, Any], types: Types) -> list[ov.Output]:
    x, angles = inputs
    assert x is not None and angles is not None
    head_dim, rotated = attrs["head_dim"], width(angles)
    heads = _convert(_fold(x, head_dim), ov.Type.f32)
    half = rotated // 2
    cos, sin = opset.split(opset.unsqueeze(angles, 1), _LAST, 2).outputs()
    sizes = [half, half, *([head_dim - rotated] if head_dim > rotated else [])]
    first, second, *rest = opset.variadic_split(heads, _LAST, sizes).outputs()
    turned = [
        opset.subtract(opset.multiply(first, cos), opset.multiply(second, sin)),
        opset.add(opset.multiply(second, cos), opset.multiply(first, sin)),
        *rest,
    ]
    return [_convert(_unfold(_out(opset.concat(turned, _LAST)), width(x)), types[0])]


def columns(x: ov.Output, offset: int, size: int) -> ov.Output:
    """Columns `offset : offset + size`: a view of the program."""
    return _out(opset.slice(x, [offset], [offset + size], [1], [_LAST]))


def width(x: ov.Output) -> int:
    """The last dimension, which is fixed."""
    size: int = x.get_partial_shape()[_LAST].get_length()
    return size


def _rms_norm(x: ov.Output, weight: ov.Output, eps: float) -> ov.Output:
    """Runs of len(weight) columns; rounded to the element type, then scaled."""
    run, whole = width(weight), width(x)
    groups = x if run == whole else _fold(x, run)
    wide = _convert(groups, ov.Type.f32)
    mean = opset.reduce_mean(opset.power(wide, np.float32(2)), [_LAST], True)
    normed = opset.multiply(wide, opset.divide(np.float32(1), opset.sqrt(opset.add(mean, np.float32(eps)))))
    scaled = _out(opset.multiply(_convert(_out(normed), x.get_element_type()), weight))
    return scaled if run == whole else _unfold(scaled, whole)


def _fold(x: ov.Output, run: int) -> ov.Output:
    """[T, n * run] -> [T, n, run]."""
    return _out(opset.reshape(x, [0, width(x) // run, run], True))


def _unfold(x: ov.Output, whole: int) -> ov.Output:
    """The way back."""
    return _out(opset.reshape(x, [0, whole], True))


def _convert(x: ov.Output, to: ov.Type) -> ov.Output:
    if x.get_element_type() == to:
        return x
    return _out(opset.convert(_nearest(x) if to == ov.Type.bf16 else x, to))


def _nearest(x: ov.Output) -> ov.Output:
    """float32 with the bits that bfloat16 lacks rounded away (Veltkamp's splitting, in Dekker 1971).

    OpenVINO's own conversion to bfloat16 cuts them off every other time. What is so large that the product would
    overflow, infinities among it, is left to that.
    """
    scaled = opset.multiply(x, np.float32(2**16 + 1))
    rounded = opset.subtract(scaled, opset.subtract(scaled, x))
    return _out(opset.select(opset.less(opset.abs(x), np.float32(2.0**110)), rounded, x))


def _out(node: ov.Node) -> ov.Output:
    return node.output(0)
