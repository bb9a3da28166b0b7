"""In which scheme each row of a model's weights is kept on the device.

Quantised is what `linear` multiplies by and `embedding` reads, and nothing else does: a table that is the head as well
is one weight, quantised once. Norms, biases and the operands of other ops stay in the model's element type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from core.config import Config
from core.layers.base import Parameter, Source
from core.logs import get_logger
from core.platform import QuantizedRows
from core.program import OpProgram, Storage
from core.quantization import block_inputs
from core.weights.base import TensorMeta
from core.weights.quantized import open_weights

log = get_logger("weights")

Parts = tuple[QuantizedRows, ...]

_TAKE_QUANTIZED = ("linear", "embedding")


def plan_parts(
    config: Config, program: OpProgram, parameters: Sequence[Parameter], declared: Sequence[str]
) -> dict[int, Parts]:
    """The parts of each weight that is kept quantised, by Value.index, as `config.model.quantization` says.

    `declared` are the platform's schemes. A GGUF file is opened for its header. A tensor whose type is not declared, or
    whose inputs, or this rank's share of them, its blocks do not divide, is dequantised, which is logged.
    """
    wanted = config.model.quantization
    if wanted == "none":
        return {}
    tensors: Mapping[str, TensorMeta] = {}
    if wanted == "stored":
        with closing(open_weights(config)) as reader:
            tensors = dict(reader.tensors())
    quantizable = _quantizable(program)
    found: dict[int, Parts] = {}
    dequantized: set[str] = set()
    for parameter in parameters:
        if parameter.value.index not in quantizable:
            continue
        schemes = [_stored_scheme(source, tensors) if wanted == "stored" else wanted for source in parameter.sources]
        kept = [scheme if _is_kept(parameter, scheme, declared) else None for scheme in schemes]
        dequantized.update(scheme for scheme, kept_as in zip(schemes, kept, strict=True) if scheme and not kept_as)
        if any(kept):
            found[parameter.value.index] = _merged(parameter.sources, kept)
    if dequantized:
        log.warning("weights in %s are kept in %s", ", ".join(sorted(dequantized)), config.model.dtype)
    return found


def _quantizable(program: OpProgram) -> set[int]:
    """Indices of the matrices that are the weight of `linear` and `embedding` only."""
    uses: dict[int, bool] = {}
    for call in program.calls:
        for place, value in enumerate(call.inputs):
            if value is not None and value.storage is Storage.WEIGHT:
                index = value.owner.index
                is_weight = call.op in _TAKE_QUANTIZED and place == 1 and len(value.shape) == 2
                uses[index] = uses.get(index, True) and is_weight
    return {index for index, always in uses.items() if always}


def _stored_scheme(source: Source, tensors: Mapping[str, TensorMeta]) -> str | None:
    """None for a tensor of floats, and for one that is missing: loading says so."""
    meta = tensors.get(source.name)
    return None if meta is None or meta.quant is None else meta.quant.lower()


def _is_kept(parameter: Parameter, scheme: str | None, declared: Sequence[str]) -> bool:
    if scheme is None or scheme not in declared:
        return False
    inputs = parameter.value.resolve(0, 0)[1]
    return inputs % block_inputs(scheme) == 0


def _merged(sources: Sequence[Source], schemes: Sequence[str | None]) -> Parts:
    """One part for neighbours of the same scheme: the device reads them as one weight."""
    parts: list[QuantizedRows] = []
    for source, scheme in zip(sources, schemes, strict=True):
        if parts and parts[-1].scheme == scheme:
            parts[-1] = QuantizedRows(parts[-1].rows + source.rows, scheme)
        else:
            parts.append(QuantizedRows(source.rows, scheme))
    return tuple(parts)


def scheme_of(parts: Parts, row: int) -> str | None:
    """The scheme that `row` is kept in."""
    for part in parts:
        if row < part.rows:
            return part.scheme
        row -= part.rows
    return None
