"""GGUF's block quantisations to float32, bit for bit what ggml's reference gives.

A row of a quantised tensor is a run of blocks: 32 weights, or 256 for the K types, with their scales. Layouts and
formulas are those of `ggml-common.h` and `ggml-quants.c` (github.com/ggml-org/ggml).

Every type ends in one of two forms, `q * scale` or `q * scale + offset`, over groups of 16 or 32 weights. Unpacking works on
eight weights at a time as one uint64, and on chunks that stay in the second-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.weights.base import Bytes

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]

#: Weights dequantised at once: 256 KiB of float32 output, about as much of everything else.
CHUNK_WEIGHTS = 1 << 16

_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_CRUMBS = np.uint64(0x0303030303030303)
_BITS = np.uint64(0x0101010101010101)
_FOUR = np.uint64(4)


class QuantType(msgspec.Struct, frozen=True):
    """A storage type: `block_bytes` hold `block_weights` weights; `decode(blocks, out)` dequantises.

    `blocks` is uint8 `[num_blocks, block_bytes]`; `out` is float32 `[num_blocks, block_weights]`, contiguous.
    """

    name: str
    block_weights: int
    block_bytes: int
    decode: Callable[[Bytes, Floats], None]


def dequantize(rows: Bytes, quant: QuantType, index: NDArray[np.int64] | None = None) -> Floats:
    """Rows of blocks, uint8 `[num_rows, row_bytes]`, to float32 `[num_rows, row_weights]`.

    With `index`, output row `i` is input row `index[i]`, and only those are touched.
    """
    num_rows = len(rows) if index is None else len(index)
    row_blocks = rows.shape[1] // quant.block_bytes
    row_weights = row_blocks * quant.block_weights
    out = np.empty((num_rows, row_weights), np.float32)
    step = max(1, CHUNK_WEIGHTS // max(1, row_weights))
    # A hostile or NaN scale may overflow; the result is what the file says, and nothing to warn about.
    with np.errstate(all="ignore"):
        for start in range(0, num_rows, step):
            part = slice(start, start + step)
            chunk = rows[part] if index is None else rows[index[part]]
            blocks = chunk.reshape(-1, quant.block_bytes)
            quant.decode(blocks, out[part].reshape(-1, quant.block_weights))
    return out


# --- pieces --------------------------------------------------------------------------------------------------


def _half(blocks: Bytes, offset: int) -> Floats:
    """The float16 at `offset` of each block, as float32 `[num_blocks, 1]`."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)


def _words(blocks: Bytes, start: int, stop: int) -> Words:
    """Bytes `start:stop` of each block as uint64 `[num_blocks, (stop - start) / 8]`, eight packed bytes each."""
    return np.ascontiguousarray(blocks[:, start:stop]).view(np.uint64)


def _scaled(q: NDArray[Any], scale: Floats, out: Floats, offset: Floats | None = None) -> None:
    """out = q * scale (+ offset), group by group; q and out are `[num_groups, group]`, scale `[num_groups, 1]`."""
    out[...] = q
    out *= scale
    if offset is not None:
        out += offset


def _nibbles(blocks: Bytes, start: int) -> Words:
    """The 32 four-bit weights in 16 bytes: low halves are weights 0-15, high halves 16-31. uint64 `[num_blocks, 4]`."""
    packed = _words(blocks, start, start + 16)
    q = np.empty((len(blocks), 4), np.uint64)
    for column in range(2):  # whole columns: a long strided loop beats many loops of length two
        q[:, column] = packed[:, column] & _NIBBLES
        q[:, column + 2] = (packed[:, column] >> _FOUR) & _NIBBLES
    return q


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """Bit `i` of the 32 at `start` as bit 4 of weight `i`. uint8 `[num_blocks, 32]`."""
    bits = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    bits <<= 4
    return bits


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight six-bit scales and eight six-bit minima from 12 bytes `[num_blocks, 12]`, each float32 `[num_blocks, 8]`.

    Bytes 0-3 and 4-7 hold scales and minima 0-3 in their low six bits; their top two bits are the top of scales and
    minima 4-7, whose low four bits are the two halves of bytes 8-11.
    """
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (rest & 15) | (low >> 6 << 4)), axis=1)
    minima = np.concatenate((high & 63, (rest >> 4) | (high >> 6 << 4)), axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_nibbles(blocks: Bytes, start: int) -> Words:
    """256 four-bit weights in four runs of 32 bytes: low halves, then high halves of each. uint64 `[n, 4, 2, 4]`."""
    packed = _words(blocks, start, start + 128).reshape(-1, 4, 4)
    q = np.empty((len(blocks), 4, 2, 4), np.uint64)
    np.bitwise_and(packed, _NIBBLES, out=q[:, :, 0])
    np.bitwise_and(packed >> _FOUR, _NIBBLES, out=q[:, :, 1])
    return q


# --- the types -----------------------------------------------------------------------------------------------


def _q4_0(blocks: Bytes, out: Floats) -> None:
    q = _nibbles(blocks, 2).view(np.int8)
    q -= 8
    _scaled(q, _half(blocks, 0), out)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _scaled(_nibbles(blocks, 4).view(np.uint8), _half(blocks, 0), out, _half(blocks, 2))


def _q5_0(blocks: Bytes, out: Floats) -> None:
    q = _nibbles(blocks, 6).view(np.int8)
    q |= _fifth_bits(blocks, 2).view(np.int8)
    q -= 16
    _scaled(q, _half(blocks, 0), out)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    q = _nibbles(blocks, 8).view(np.uint8)
    q |= _fifth_bits(blocks, 4)
    _scaled(q, _half(blocks, 0), out, _half(blocks, 2))


def _q8_0(blocks: Bytes, out: Floats) -> None:
    _scaled(blocks[:, 2:34].view(np.int8), _half(blocks, 0), out)


def _k_affine(blocks: Bytes, q: Words, out: Floats) -> None:
    """Q4_K and Q5_K: `(d * scale) * q - dmin * minimum` for each of eight groups of 32."""
    scales, minima = _k_scales(blocks[:, 4:16])
    scales *= _half(blocks, 0)
    minima *= -_half(blocks, 2)
    _scaled(q.view(np.uint8).reshape(-1, 32), scales.reshape(-1, 1), out.reshape(-1, 32), minima.reshape(-1, 1))


def _q4_k(blocks: Bytes, out: Floats) -> None:
    _k_affine(blocks, _k_nibbles(blocks, 16), out)


def _q5_k(blocks: Bytes, out: Floats) -> None:
    q = _k_nibbles(blocks, 48).reshape(-1, 8, 4)
    fifth = _words(blocks, 16, 48)  # bit g of byte i belongs to weight i of group g
    for group in range(8):
        q[:, group] |= ((fifth >> np.uint64(group)) & _BITS) << _FOUR
    _k_affine(blocks, q, out)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    """Two halves of 128 weights: 64 bytes of low nibbles, then high nibbles; two upper bits from 32 bytes each."""
    low = _words(blocks, 0, 128).reshape(-1, 2, 8)
    high = _words(blocks, 128, 192).reshape(-1, 2, 4)
    words = np.empty((len(blocks), 2, 16), np.uint64)
    np.bitwise_and(low, _NIBBLES, out=words[:, :, :8])
    np.bitwise_and(low >> _FOUR, _NIBBLES, out=words[:, :, 8:])
    for group in range(4):
        words[:, :, 4 * group : 4 * group + 4] |= ((high >> np.uint64(2 * group)) & _CRUMBS) << _FOUR
    q = words.view(np.int8)
    q -= 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    scales *= _half(blocks, 208)
    _scaled(q.reshape(-1, 16), scales.reshape(-1, 1), out.reshape(-1, 16))


QUANT_TYPES = {
    quant.name: quant
    for quant in (
        QuantType("Q4_0", 32, 18, _q4_0),
        QuantType("Q4_1", 32, 20, _q4_1),
        QuantType("Q5_0", 32, 22, _q5_0),
        QuantType("Q5_1", 32, 24, _q5_1),
        QuantType("Q8_0", 32, 34, _q8_0),
        QuantType("Q4_K", 256, 144, _q4_k),
        QuantType("Q5_K", 256, 176, _q5_k),
        QuantType("Q6_K", 256, 210, _q6_k),
    )
}
