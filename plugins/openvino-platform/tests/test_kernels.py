"""Each lowering, compiled alone, against the reference of its op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import Unsupported
from core.ops import ATTENTION_OPS, ENCODER_OPS, REFERENCE
from core_openvino.device import Device
from core_openvino.kernels import OneOpKernels

DEVICE = Device(1)
KERNELS = OneOpKernels(DEVICE)
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.has_bfloat16() else [torch.float32]
HEADS, DIM, ROWS = 3, 16, 7
WIDTH = HEADS * DIM


def view(rows: int, columns: int) -> Tensor:
    """Random numbers in the middle columns of a wider tensor, as a part of a stacked projection lies."""
    return torch.randn(rows, columns + 8)[:, 3 : columns + 3]


def indices(rows: int) -> Tensor:
    return torch.randint(0, 5, (rows,), dtype=torch.int32)


def angles(rows: int, rotated: int) -> Tensor:
    out = torch.zeros(rows, rotated)
    REFERENCE["rope_angles"](indices(rows), torch.rand(rotated // 2), out, scale=1.0)
    return out


#: Inputs for a number of rows, widths of the outputs, attributes.
Case = tuple[Callable[[int], list[Tensor | None]], tuple[int, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "embedding": (lambda rows: [indices(rows), torch.randn(5, WIDTH)], (WIDTH,), {}),
    "select_rows": (lambda rows: [view(5, WIDTH), indices(rows)], (WIDTH,), {}),
    "linear": (lambda rows: [view(rows, WIDTH), torch.randn(20, WIDTH), None], (20,), {}),
    "linear with a bias": (lambda rows: [view(rows, WIDTH), torch.randn(20, WIDTH), torch.randn(20)], (20,), {}),
    "rms_norm": (lambda rows: [view(rows, WIDTH), torch.randn(WIDTH)], (WIDTH,), {"eps": 1e-5}),
    "rms_norm of heads": (lambda rows: [view(rows, WIDTH), torch.randn(DIM)], (WIDTH,), {"eps": 1e-2}),
    "add_rms_norm": (
        lambda rows: [view(rows, WIDTH), view(rows, WIDTH), torch.randn(WIDTH)], (WIDTH, WIDTH), {"eps": 1e-5},
    ),
    "silu_mul": (lambda rows: [view(rows, WIDTH)], (WIDTH // 2,), {}),
    "rope": (lambda rows: [view(rows, WIDTH), angles(rows, DIM)], (WIDTH,), {"head_dim": DIM}),
    "rope in part": (lambda rows: [view(rows, WIDTH), angles(rows, DIM // 2)], (WIDTH,), {"head_dim": DIM}),
}  # fmt: skip


def in_type(tensor: Tensor | None, dtype: torch.dtype, name: str, index: int) -> Tensor | None:
    """Integers and the angles of rope stay what they are."""
    if tensor is None or not tensor.is_floating_point() or (name.startswith("rope") and index == 1):
        return tensor
    return tensor.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    make, widths, attrs = CASES[name]
    op = name.partition(" ")[0]
    for rows in (ROWS, 1, 33):  # the second and third time by the model of the first
        inputs = [in_type(tensor, dtype, name, index) for index, tensor in enumerate(make(rows))]
        got, expected = ([torch.full((rows, width), 7.5, dtype=dtype) for width in widths] for _ in range(2))
        KERNELS.get(op)(*inputs, *got, **attrs)
        REFERENCE[op](*inputs, *expected, **attrs)
        for one, other in zip(got, expected, strict=True):
            tolerance = 2e-5 if dtype is torch.float32 else 2.0**-7
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_angles_are_exact_at_large_positions() -> None:
    positions, inv_freq = torch.tensor([0, 1, 4095, 131071], dtype=torch.int32), torch.tensor([1.0, 0.1, 1e-4])
    got, expected = torch.zeros(4, 6), torch.zeros(4, 6)
    KERNELS.get("rope_angles")(positions, inv_freq, got, scale=1.25)
    REFERENCE["rope_angles"](positions, inv_freq, expected, scale=1.25)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_logits_are_wider_than_the_activations() -> None:
    x, weight = torch.randn(2, 8).to(DTYPES[-1]), torch.randn(4, 8).to(DTYPES[-1])
    got, expected = torch.zeros(2, 4), torch.zeros(2, 4)
    KERNELS.get("linear")(x, weight, None, got)
    REFERENCE["linear"](x, weight, None, expected)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(len(DTYPES) == 1, reason="this processor has no bfloat16 instructions: it is not claimed here")
def test_bfloat16_is_rounded_to_the_nearest() -> None:
    """OpenVINO's own conversion is not: it is up to twice as far off."""
    gate_up = torch.randn(64, 128).bfloat16()
    got = torch.zeros(64, 64, dtype=torch.bfloat16)
    KERNELS.get("silu_mul")(gate_up, got)
    gate, up = gate_up.float().chunk(2, -1)
    exact = torch.nn.functional.silu(gate).bfloat16().float() * up
    assert ((got.float() - exact).abs() <= 2.0**-8 * exact.abs() * 1.01).all()


def test_infinities_and_nan_pass_through() -> None:
    for dtype in DTYPES:
        gate_up = torch.tensor([[1.0, 1.0, 1.0, 1.0, float("inf"), float("nan"), -float("inf"), 2.0]], dtype=dtype)
        got, expected = torch.zeros(1, 4, dtype=dtype), torch.zeros(1, 4, dtype=dtype)
        KERNELS.get("silu_mul")(gate_up, got)
        REFERENCE["silu_mul"](gate_up, expected)
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=0, equal_nan=True)


def test_every_op_of_a_decoder_but_attentions_is_claimed() -> None:
    for op in REFERENCE:
        assert bool(KERNELS.supports(op)) is (op not in ATTENTION_OPS | ENCODER_OPS)
    with pytest.raises(Unsupported, match="op attention"):
        KERNELS.get("attention")
