"""What a quantised weight reads as: the meaning of each scheme, which a platform's own form of it is held against.

The online schemes are defined here. GGUF's block types are ggml's (`core.weights.gguf.quants`); their names in a
platform's `Capabilities.quantization` are in lower case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.platform import ONLINE_SCHEMES
from core.weights.gguf.quants import QUANT_TYPES, dequantize

INT4_GROUP = 32

#: GGUF's block types as schemes.
BLOCK_SCHEMES = tuple(name.lower() for name in QUANT_TYPES)
SCHEMES = (*ONLINE_SCHEMES, *BLOCK_SCHEMES)


def block_inputs(scheme: str) -> int:
    """Inputs of a row that lie in one block, or share a scale; they divide a row that can be in this scheme."""
    if scheme in ONLINE_SCHEMES:
        return INT4_GROUP if scheme == "int4" else 1
    return QUANT_TYPES[scheme.upper()].block_weights


def quantized(rows: Tensor, scheme: str) -> Tensor:
    """Float rows [outputs, inputs] as an online scheme reads them, in float32.

    int8: w = s q, q from -127 to 127, s the row's largest magnitude / 127. int4: w = m + s q, q from 0 to 15, for each 32
    inputs; m is their minimum and s their range / 15, both rounded to float16 (GGUF's Q4_1).
    """
    rows = rows.float().contiguous()
    if scheme == "int8":
        scale = rows.abs().amax(1, keepdim=True) / 127
        return _codes(rows, scale, -127, 127) * scale
    groups: Tensor = rows.view(len(rows), -1, INT4_GROUP)
    least, most = groups.aminmax(dim=2, keepdim=True)
    scale, least = ((most - least) / 15).half().float(), least.half().float()
    return (least + _codes(groups - least, scale, 0, 15) * scale).flatten(1)


def _codes(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """A scale of zero has one value to give, whatever the code."""
    codes: Tensor = (values / scale).nan_to_num(0.0, 0.0, 0.0).round().clamp(low, high)
    return codes


def dequantized(blocks: Tensor, scheme: str) -> Tensor:
    """Blocks of a GGUF type, uint8 [outputs, bytes of a row], as float32 [outputs, inputs]."""
    return torch.from_numpy(dequantize(blocks.numpy(), QUANT_TYPES[scheme.upper()]))
