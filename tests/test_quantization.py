"""What the schemes mean, and the default memory that keeps what a quantised weight reads as."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.defaults import TorchMemory, check_parts
from core.errors import Unsupported
from core.platform import MemoryInfo, QuantizedRows
from core.quantization import SCHEMES, block_inputs, dequantized, quantized
from core.types import DType


def rows(count: int, inputs: int) -> torch.Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count * inputs))


def memory() -> TorchMemory:
    return TorchMemory("cpu", lambda: MemoryInfo(1 << 30, 1 << 30))


def test_int8_is_one_scale_a_row() -> None:
    data = rows(5, 33)
    error = (quantized(data, "int8") - data).abs()
    assert (error <= data.abs().amax(1, keepdim=True) / 254 * 1.0001).all()
    codes = quantized(data, "int8") / (data.abs().amax(1, keepdim=True) / 127)
    assert torch.allclose(codes, codes.round(), atol=1e-3)


def test_int4_is_what_ggufs_q4_1_reads_as() -> None:
    """A row that Q4_1 can hold comes back as it was."""
    blocks = torch.randint(256, (4, 3 * 20), dtype=torch.uint8).view(4, 3, 20)
    blocks[..., :4] = torch.from_numpy(np.array([0.125, -0.75], np.float16).view(np.uint8))
    blocks[..., 4] = 0xF0  # the least and the largest code are there
    stored = dequantized(blocks.flatten(1), "q4_1")
    assert torch.equal(quantized(stored, "int4"), stored)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, 3.0, -0.001])
def test_rows_of_one_value_are_kept(scheme: str, value: float) -> None:
    found = quantized(torch.full((2, 64), value), scheme)
    assert torch.allclose(found, torch.full((2, 64), value), rtol=1e-3)


def test_a_row_does_not_depend_on_others() -> None:
    data = rows(8, 64)
    for scheme in ("int8", "int4"):
        assert torch.equal(quantized(data, scheme)[3:4], quantized(data[3:4], scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_inputs_that_blocks_do_not_divide_are_refused(scheme: str) -> None:
    check_parts((4, 256), [QuantizedRows(4, scheme)])
    size = block_inputs(scheme)
    if size > 1:
        with pytest.raises(Unsupported, match=f"weights in {scheme} of {size + 16} inputs .* blocks are of {size}"):
            check_parts((4, size + 16), [QuantizedRows(4, scheme)])


def test_parts_add_up() -> None:
    with pytest.raises(ValueError, match=r"parts of \[2, 1\] rows do not make the 4"):
        memory().alloc_quantized((4, 32), DType.FLOAT32, [QuantizedRows(2, "int8"), QuantizedRows(1, None)])
    with pytest.raises(Unsupported, match="weights in int2"):
        memory().alloc_quantized((4, 32), DType.FLOAT32, [QuantizedRows(4, "int2")])


def test_each_part_has_its_scheme() -> None:
    held, data = memory(), rows(9, 64)
    parts = [QuantizedRows(4, "int8"), QuantizedRows(3, None), QuantizedRows(2, "int4")]
    handle = held.alloc_quantized((9, 64), DType.FLOAT32, parts)
    held.upload(handle, data[:6])
    held.upload(handle, data[6:], row=6)
    wanted = torch.cat([quantized(data[:4], "int8"), data[4:7], quantized(data[7:], "int4")])
    assert torch.equal(held.download(handle), wanted)
    assert held.in_use() == {"weights": held.quantized_size((9, 64), DType.FLOAT32, parts)}
    held.free(handle)
    assert not held.in_use()


def test_blocks_go_to_their_own_part() -> None:
    held = memory()
    handle = held.alloc_quantized((4, 32), DType.FLOAT32, [QuantizedRows(2, "q8_0"), QuantizedRows(2, "int8")])
    blocks = torch.ones(2, 34, dtype=torch.uint8)
    held.upload_blocks(handle, blocks, "q8_0")
    assert torch.equal(held.download(handle)[:2], dequantized(blocks, "q8_0"))
    for row in (1, 2):
        with pytest.raises(ValueError, match="are not kept in q8_0"):
            held.upload_blocks(handle, blocks, "q8_0", row=row)
    with pytest.raises(ValueError, match="does not fit"):
        held.upload_blocks(handle, torch.ones(2, 68, dtype=torch.uint8), "q8_0")
