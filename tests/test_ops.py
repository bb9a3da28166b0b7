"""Each reference op against a formulation of its own, its inferred shapes, and what recording refuses.

The formulations are transformers' modules and torch's `scaled_dot_product_attention`, in float32 or in the element
type; bounds are stated where the order of sums may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from core import ops
from core.defaults import torch_dtype
from core.errors import RecordingError
from core.program import NUM_SEQS, NUM_TOKENS, Dim, OpProgram, Shape, Storage, Value
from core.types import DType

TYPES = [torch.float32, torch.bfloat16]
REFERENCE = ops.REFERENCE


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def run(op: str, *inputs: Any, out: tuple[int, ...], dtype: torch.dtype = torch.float32, **attrs: Any) -> Tensor:
    """The op's result, from an output that held NaN: a kernel writes all of it."""
    result = torch.full(out, float("nan"), dtype=dtype)
    REFERENCE[op](*inputs, result, **attrs)
    return result


# --- meanings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["embedding", "select_rows"])
def test_rows(op: str) -> None:
    table, rows = torch.randn(7, 5), torch.tensor([3, 3, 0, 6], dtype=torch.int32)
    arguments = (rows, table) if op == "embedding" else (table, rows)
    assert torch.equal(run(op, *arguments, out=(4, 5)), torch.stack([table[i] for i in rows.tolist()]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(dtype: torch.dtype, bias: bool) -> None:
    x, weight, offset = torch.randn(6, 24).to(dtype), torch.randn(9, 24).to(dtype), torch.randn(9).to(dtype)
    exact = x.double() @ weight.double().T + (offset.double() if bias else 0)
    near = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]  # relative: sums of 24, or one rounding
    for out_dtype in (dtype, torch.float32):
        result = run("linear", x, weight, offset if bias else None, out=(6, 9), dtype=out_dtype)
        torch.testing.assert_close(result.double(), exact, rtol=near, atol=near * 4)


@pytest.mark.parametrize("dtype", TYPES)
def test_rms_norm_is_llamas(dtype: torch.dtype) -> None:
    x, module = torch.randn(5, 48).to(dtype), LlamaRMSNorm(48, eps=1e-5).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(48))
        expected = module(x)
        weight = module.weight.detach()
    assert torch.equal(run("rms_norm", x, weight, out=(5, 48), dtype=dtype, eps=1e-5), expected)


def test_rms_norm_of_heads() -> None:
    x, weight = torch.randn(5, 48), torch.randn(16)
    expected = torch.cat([functional.rms_norm(head, (16,), weight, 1e-6) for head in x.split(16, dim=1)], dim=1)
    torch.testing.assert_close(run("rms_norm", x, weight, out=(5, 48), eps=1e-6), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x, residual, weight = (torch.randn(size).to(dtype) for size in ((5, 48), (5, 48), (48,)))
    normed, total = torch.empty_like(x), torch.empty_like(x)
    REFERENCE["add_rms_norm"](x, residual, weight, normed, total, eps=1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, run("rms_norm", x + residual, weight, out=(5, 48), dtype=dtype, eps=1e-5))


@pytest.mark.parametrize("dtype", TYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    x = torch.randn(5, 32).to(dtype)
    assert torch.equal(run("silu_mul", x, out=(5, 16), dtype=dtype), functional.silu(x[:, :16]) * x[:, 16:])


@pytest.mark.parametrize("rotated", [16, 8])
@pytest.mark.parametrize("dtype", TYPES)
def test_rope_is_transformers(rotated: int, dtype: torch.dtype) -> None:
    heads, head_dim, scale = 3, 16, 1.5
    positions = torch.tensor([0, 1, 77, 400], dtype=torch.int32)
    inv_freq = 10000.0 ** -(torch.arange(0, rotated, 2) / rotated)
    angles = run("rope_angles", positions, inv_freq, out=(4, rotated), scale=scale)
    both = torch.outer(positions.float(), inv_freq).repeat(1, 2)
    torch.testing.assert_close(angles[:, : rotated // 2], both.cos()[:, : rotated // 2] * scale)

    x = torch.randn(4, heads * head_dim).to(dtype)
    result = run("rope", x, angles, out=(4, heads * head_dim), dtype=dtype, head_dim=head_dim)
    split = x.view(1, 4, heads, head_dim).transpose(1, 2).float()
    turned, _ = apply_rotary_pos_emb(
        split[..., :rotated], split[..., :rotated], both.cos()[None] * scale, both.sin()[None] * scale
    )
    expected = torch.cat([turned, split[..., rotated:]], dim=-1).transpose(1, 2).reshape(4, -1)
    torch.testing.assert_close(result, expected.to(dtype), rtol=1e-5 if dtype is torch.float32 else 2**-8, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=4),
    block_size=st.sampled_from([1, 3, 4, 8]),
    group=st.sampled_from([1, 3]),
    window=st.sampled_from([None, 1, 4, 7]),
    seed=st.integers(0, 99),
)
def test_paged_attention_is_sdpa(
    lengths: list[tuple[int, int]], block_size: int, group: int, window: int | None, seed: int
) -> None:
    """(tokens before the step, tokens in it) for each sequence; what is not theirs in the cache is NaN."""
    torch.manual_seed(seed)
    kv_heads, dim = 2, 8
    totals = [before + now for before, now in lengths]
    max_blocks = -(-max(totals) // block_size) + 1
    ids = torch.randperm(len(lengths) * max_blocks).view(len(lengths), max_blocks).to(torch.int32) + 1
    cache = [torch.full((ids.numel() + 1, kv_heads, block_size, dim), float("nan")) for _ in range(2)]
    queries, expected = [], []
    for row, (total, (_, now)) in enumerate(zip(totals, lengths, strict=True)):
        key, value = torch.randn(2, total, kv_heads * dim)
        places = torch.arange(total)
        slots = ids[row][places // block_size] * block_size + places % block_size
        REFERENCE["kv_write"](key, value, cache, slots.to(torch.int32))
        queries.append(torch.randn(now, kv_heads * group * dim))
        expected.append(_sdpa(queries[-1], key, value, kv_heads, window))
    query = torch.cat(queries)
    starts = torch.tensor([0, *[now for _, now in lengths]]).cumsum(0).to(torch.int32)
    attrs = {"head_dim": dim, "num_kv_heads": kv_heads, "scale": dim**-0.5, "window": window}
    result = run(
        "attention", query, cache, ids, starts, torch.tensor(totals, dtype=torch.int32), out=query.shape, **attrs
    )
    torch.testing.assert_close(result, torch.cat(expected), rtol=1e-5, atol=1e-5)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, kv_heads: int, window: int | None) -> Tensor:
    now, total = query.shape[0], key.shape[0]
    distance = torch.arange(total - now, total)[:, None] - torch.arange(total)[None, :]
    seen = (distance >= 0) & (distance < (window or total + 1))
    dim = key.shape[1] // kv_heads
    q, k, v = (x.view(x.shape[0], -1, dim).transpose(0, 1)[None] for x in (query, key, value))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return out[0].transpose(0, 1).reshape(now, -1)


# --- shapes --------------------------------------------------------------------------------------------------


def declared(*shape: int | Dim, dtype: DType = DType.FLOAT32) -> tuple[Shape, DType]:
    return shape, dtype


T, S, STARTS = NUM_TOKENS, NUM_SEQS, Dim(NUM_SEQS.symbol, 1)
CALLS: dict[str, tuple[list[tuple[Shape, DType]], Callable[..., Any], dict[str, Any]]] = {
    "embedding": ([declared(T, dtype=DType.INT32), declared(11, 6, dtype=DType.BFLOAT16)], ops.embedding, {}),
    "linear": ([declared(T, 6), declared(4, 6)], ops.linear, {}),
    "linear to float32": (
        [declared(S, 6, dtype=DType.BFLOAT16), declared(4, 6, dtype=DType.BFLOAT16), declared(4, dtype=DType.BFLOAT16)],
        ops.linear,
        {"out_dtype": DType.FLOAT32},
    ),
    "select_rows": ([declared(T, 6), declared(S, dtype=DType.INT32)], ops.select_rows, {}),
    "rms_norm": ([declared(T, 12), declared(4)], ops.rms_norm, {"eps": 1e-5}),
    "add_rms_norm": ([declared(T, 12), declared(T, 12), declared(12)], ops.add_rms_norm, {"eps": 1e-5}),
    "silu_mul": ([declared(T, 12)], ops.silu_mul, {}),
    "rope_angles": ([declared(T, dtype=DType.INT32), declared(3)], ops.rope_angles, {"scale": 1.0}),
    "rope": ([declared(T, 16), declared(T, 6)], ops.rope, {"head_dim": 8}),
    "add": ([declared(T, 6), declared(T, 6)], ops.add, {}),
    "add_layer_norm": ([declared(T, 6), declared(T, 6), declared(6), declared(6)], ops.add_layer_norm, {"eps": 1e-5}),
    "activation": ([declared(T, 6)], ops.activation, {"kind": "gelu"}),
    "encoder_attention": (
        [declared(T, 16), declared(T, 8), declared(T, 8), declared(STARTS, dtype=DType.INT32)],
        ops.encoder_attention,
        {"head_dim": 4, "num_kv_heads": 2, "scale": 0.5},
    ),
    "mean_rows": ([declared(T, 6), declared(STARTS, dtype=DType.INT32)], ops.mean_rows, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_inferred_shapes_are_those_that_the_reference_fills(name: str) -> None:
    values, op, attrs = CALLS[name]
    program = OpProgram()
    inputs = [program.new(f"in{i}", shape, dtype, Storage.INPUT) for i, (shape, dtype) in enumerate(values)]
    ops.record(program, lambda: op(*inputs, **attrs))
    (call,) = program.calls
    arguments = [_tensor(value, fill=1) if value is not None else None for value in call.inputs]
    outputs = [_tensor(value, fill=float("nan")) for value in call.outputs]
    before = [(output.shape, output.data_ptr()) for output in outputs]
    REFERENCE[call.op](*arguments, *outputs, **call.attrs)
    assert [(output.shape, output.data_ptr()) for output in outputs] == before  # `out=` did not resize it
    assert not any(output.isnan().any() for output in outputs)


def _tensor(value: Value, fill: float) -> Tensor:
    if value.shape == (STARTS,):
        return torch.tensor([0, 2, 5], dtype=torch.int32)
    return torch.full(value.resolve(num_tokens=5, num_seqs=2), fill, dtype=torch_dtype(value.dtype))


def test_split_makes_views_of_one_value() -> None:
    program = OpProgram()
    x = program.new("x", (T, 10), DType.FLOAT32, Storage.INPUT)

    def forward() -> None:
        left, right = ops.split(x, (4, 6))
        (inner,) = ops.split(right, (6,))
        assert (left.owner, left.offset, left.shape) == (x, 0, (T, 4))
        assert (inner.owner, inner.offset, inner.shape) == (x, 4, (T, 6))

    ops.record(program, forward)
    assert program.calls == []


def test_every_op_has_a_reference_and_every_reference_an_op() -> None:
    assert all(callable(getattr(ops, name)) for name in REFERENCE)
    assert {name.split()[0] for name in CALLS} == set(REFERENCE) - ops.ATTENTION_OPS
    assert set(REFERENCE) >= ops.ATTENTION_OPS


# --- what recording refuses ----------------------------------------------------------------------------------


def value(program: OpProgram, *shape: int | Dim) -> Value:
    return program.new(f"v{len(program.values)}", shape, DType.FLOAT32, Storage.INPUT)


@pytest.mark.parametrize(
    "stray",
    [
        torch.relu,
        functional.silu,
        lambda _: torch.ones(3),
        lambda _: WEIGHT * 2,  # weights only: computed once and frozen
        lambda _: WEIGHT.sum().item(),
        lambda _: WEIGHT.t(),
    ],
)
def test_recording_raises_on_any_torch_operation(stray: Callable[[Any], Any]) -> None:
    program = OpProgram()
    x = value(program, T, 4)
    with pytest.raises(RecordingError, match=r"core\.ops"):
        ops.record(program, lambda: stray(x))


WEIGHT = torch.ones(4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: ops.linear(value(p, T, 4), value(p, 8, 5)),
        lambda p: ops.split(value(p, T, 4), (1, 2)),
    ],
)
def test_recording_raises_on_shapes_that_do_not_fit(wrong: Callable[[OpProgram], Any]) -> None:
    program = OpProgram()
    with pytest.raises(RecordingError):
        ops.record(program, lambda: wrong(program))


def test_ops_are_for_recording_only() -> None:
    program = OpProgram()
    with pytest.raises(RecordingError, match="only while a model is being recorded"):
        ops.silu_mul(value(program, T, 4))


def test_recording_ends_when_the_forward_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        ops.record(OpProgram(), lambda: [][0 // 0])
    assert torch.ones(2).sum() == 2
    with pytest.raises(RecordingError):
        ops.silu_mul(value(OpProgram(), T, 4))


# --- encoders and poolers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_add_and_add_layer_norm(dtype: torch.dtype) -> None:
    x, residual = torch.randn(5, 24).to(dtype), torch.randn(5, 24).to(dtype)
    weight, bias = torch.rand(24).to(dtype) + 0.5, torch.randn(24).to(dtype)
    assert torch.equal(run("add", x, residual, out=(5, 24), dtype=dtype), x + residual)
    exact = torch.nn.functional.layer_norm(
        x.double() + residual.double(), (24,), weight.double(), bias.double(), eps=1e-5
    )
    found = run("add_layer_norm", x, residual, weight, bias, out=(5, 24), dtype=dtype, eps=1e-5)
    torch.testing.assert_close(found.double(), exact, atol=3 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("kind", "meaning"),
    [
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("gelu_tanh", lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2),
        ("relu", lambda x: x * (x > 0)),
        ("tanh", torch.tanh),
    ],
)
def test_activation(kind: str, meaning: Any) -> None:
    x = torch.linspace(-8, 8, 99)[None, :]
    torch.testing.assert_close(run("activation", x, out=(1, 99), kind=kind), meaning(x.double()).float())


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_encoder_attention_sees_both_ways_and_no_other_sequence(kv_heads: int) -> None:
    lengths, dim = [5, 0, 1, 9], 8
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    query, key, value = (torch.randn(15, heads * dim) for heads in (4, kv_heads, kv_heads))
    attrs = {"head_dim": dim, "num_kv_heads": kv_heads, "scale": 0.4}
    found = run("encoder_attention", query, key, value, starts, out=(15, 4 * dim), **attrs)
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (
            each[start:stop].unflatten(-1, (-1, dim)).transpose(0, 1).repeat_interleave(4 * dim // each.shape[1], 0)
            for each in (query, key, value)
        )
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(0, 1).flatten(1)
        torch.testing.assert_close(found[start:stop], wanted)


def test_mean_rows() -> None:
    x, starts = torch.randn(7, 3), torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    wanted = torch.stack([x[:2].mean(0), torch.zeros(3), x[2:].mean(0)])
    torch.testing.assert_close(run("mean_rows", x, starts, out=(3, 3)), wanted)
