"""Dequantisation against the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.weights.gguf.quants import CHUNK_WEIGHTS, QUANT_TYPES, QuantType, dequantize

#: Where each type keeps its float16 scales.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


def random_rows(quant: QuantType, num_rows: int, row_blocks: int, seed: int) -> np.ndarray:
    """Random blocks whose scales are finite."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_rows * row_blocks, quant.block_bytes), dtype=np.uint8)
    for offset in SCALES[quant.name]:
        scales = rng.normal(size=len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(num_rows, row_blocks * quant.block_bytes)


def reference(rows: np.ndarray, name: str) -> np.ndarray:
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_every_type_has_its_scales_listed_here() -> None:
    assert set(SCALES) == set(QUANT_TYPES)


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_block_sizes_are_ggmls(name: str) -> None:
    quant = QUANT_TYPES[name]
    assert (quant.block_weights, quant.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("name", QUANT_TYPES)
@given(num_rows=st.integers(1, 5), row_blocks=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_random_blocks_bit_for_bit(name: str, num_rows: int, row_blocks: int, seed: int) -> None:
    rows = random_rows(QUANT_TYPES[name], num_rows, row_blocks, seed)
    assert same_bits(dequantize(rows, QUANT_TYPES[name]), reference(rows, name))


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_more_than_one_chunk_and_chosen_rows(name: str) -> None:
    quant = QUANT_TYPES[name]
    row_blocks = 2048 // quant.block_weights
    rows = random_rows(quant, 2 * CHUNK_WEIGHTS // 2048 + 3, row_blocks, seed=7)
    whole = reference(rows, name)
    assert same_bits(dequantize(rows, quant), whole)
    index = np.random.default_rng(1).permutation(len(rows))[:40]
    assert same_bits(dequantize(rows, quant, index), whole[index])


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_arbitrary_scales_neither_warn_nor_fail(name: str) -> None:
    quant = QUANT_TYPES[name]
    rows = np.random.default_rng(3).integers(0, 256, (64, 8 * quant.block_bytes), dtype=np.uint8)
    got = dequantize(rows, quant)
    with np.errstate(all="ignore"):
        want = reference(rows, name)
    assert np.array_equal(got, want, equal_nan=True)


def test_no_rows() -> None:
    assert dequantize(np.empty((0, 36), np.uint8), QUANT_TYPES["Q4_0"]).shape == (0, 64)
