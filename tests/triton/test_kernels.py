"""What the conformance kit does not ask of the GPU kernels: each path of attention that a shape or a tile chooses, and
the kernels that no op has alone. The kit's level `ops` runs beside these (`make test-gpu-kernels`)."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core import ops
from core.conformance import steps
from core.conformance.bounds import bound
from core.conformance.cases import Numbers
from core.conformance.steps import Span, Step
from core.defaults import torch_dtype
from core.platform import AttentionBackend, AttentionQuery
from core.types import DType

pytestmark = pytest.mark.gpu_kernels

ROOT = Path(__file__).parents[2]
BLOCK = 16
QUERY = AttentionQuery(
    head_dim=20, num_heads=7, num_kv_heads=1, window=None, dtype=DType.FLOAT32, kv_dtype=DType.FLOAT32, block_size=BLOCK
)


def backend(**changes: Any) -> Any:
    """The attention backend, in the interpreter's tiles but for `changes`."""
    tiles = import_module("platforms._shared.triton.tiles")
    attention = import_module("platforms._shared.triton.attention")
    return attention.TritonAttention(replace(tiles.INTERPRETER, **changes), "cpu")


def filled(attention: AttentionBackend, query: AttentionQuery, step: Step) -> list[Tensor]:
    """A cache of NaN in which the step's past and its own keys and values are written."""
    layout = attention.kv_layout(query)
    shape = (step.num_blocks, *layout.block_shape)
    poison = 77 if layout.dtype is DType.INT8 else float("nan")
    cache = [torch.full(shape, poison, dtype=torch_dtype(layout.dtype)) for _ in range(layout.planes)]
    for key, value, slots in (
        (step.past_key, step.past_value, step.past_slots),
        (step.key, step.value, step.slots),
    ):
        if len(slots):
            dtype = torch_dtype(query.dtype)
            attention.write_kv(key.flatten(1).to(dtype), value.flatten(1).to(dtype), cache, slots)
    return cache


def forward(attention: AttentionBackend, query: AttentionQuery, step: Step) -> Tensor:
    given = step.query.flatten(1).to(torch_dtype(query.dtype))
    out = torch.full_like(given, float("nan"))
    attention.forward(
        given, filled(attention, query, step), step.block_table, step.query_start, step.seq_lens, out,
        head_dim=query.head_dim, num_kv_heads=query.num_kv_heads, scale=query.head_dim**-0.5, window=query.window,
    )  # fmt: skip
    return out


def attended(attention: AttentionBackend, query: AttentionQuery, sequences: list[Span]) -> tuple[Tensor, Tensor, float]:
    """What the backend gives, what is right, and the largest error relative to the magnitudes of the sums."""
    step = steps.make(Numbers(f"{query}"), query, sequences)
    out = forward(attention, query, step)
    wanted, magnitude = steps.expected(step, query, query.head_dim**-0.5)
    error = ((out.float() - wanted).abs() / magnitude.clamp_min(1e-30)).max()
    assert not out.isnan().any()
    return out, wanted, float(error)


# A context of several splits, one shorter than a tile, one whose last splits are empty, a sequence without rows.
DECODE = [Span(161, 1), Span(3, 1), Span(40, 1), Span(70, 0), Span(97, 2)]


@pytest.mark.parametrize("programs", [1, 8, 1000])
@pytest.mark.parametrize("window", [None, 33])
def test_a_context_may_be_split_into_any_number_of_parts(programs: int, window: int | None) -> None:
    query = replace(QUERY, window=window)
    _, _, error = attended(backend(programs=programs), query, DECODE)
    assert error <= bound("attention", DType.FLOAT32, 200)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_splits_are_combined_in_float32(dtype: DType) -> None:
    query = replace(QUERY, dtype=dtype, kv_dtype=dtype, head_dim=64, num_heads=4, num_kv_heads=2)
    _, _, error = attended(backend(programs=1000), query, DECODE)
    assert error <= bound("attention", dtype, 200)


@pytest.mark.parametrize("heads", [(16, 1), (5, 5), (6, 2)])
def test_a_prefill_tile_holds_as_many_tokens_as_its_heads_leave_room_for(heads: tuple[int, int]) -> None:
    query = replace(QUERY, num_heads=heads[0], num_kv_heads=heads[1], head_dim=16)
    _, _, error = attended(backend(), query, [Span(50, 50), Span(70, 9), Span(1, 1), Span(33, 17)])
    assert error <= bound("attention", DType.FLOAT32, 200)


def test_a_prompt_s_rows_are_the_same_bits_beside_others() -> None:
    """Nothing but the row's own sequence enters its sums."""
    beside = steps.make(Numbers("beside"), QUERY, [Span(50, 50), Span(70, 9), Span(33, 33)])
    first = {name: getattr(beside, name)[:50] for name in ("query", "key", "value", "slots")}
    empty = {"past_key": beside.past_key[:0], "past_value": beside.past_value[:0], "past_slots": beside.past_slots[:0]}
    rows = {
        "block_table": beside.block_table[:1],
        "query_start": beside.query_start[:2],
        "seq_lens": beside.seq_lens[:1],
    }
    alone = replace(beside, **first, **empty, **rows, tokens=50)
    assert torch.equal(forward(backend(), QUERY, alone), forward(backend(), QUERY, beside)[:50])


def test_more_heads_than_a_tile_has_are_refused() -> None:
    support = backend().supports(replace(QUERY, num_heads=17))
    assert not support and "17 heads" in support.reason


def test_int8_needs_room_for_its_scales() -> None:
    support = backend().supports(replace(QUERY, head_dim=5, block_size=3, kv_dtype=DType.INT8))
    assert not support and "multiple of 4" in support.reason


@pytest.mark.parametrize("kv_dtype", [DType.FLOAT32, DType.BFLOAT16, DType.INT8])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_rope_and_kv_write_in_one_pass_store_what_they_store_apart(dtype: DType, kv_dtype: DType) -> None:
    numbers, heads, head_dim, tokens = Numbers("fused"), 3, 20, 9
    element = torch_dtype(dtype)
    qkv = numbers.normal(tokens, 3 * heads * head_dim).to(element)
    key, value = qkv[:, : heads * head_dim], qkv[:, 2 * heads * head_dim :]  # columns of a wider tensor
    turn = 4 * numbers.normal(tokens, head_dim // 2)
    angles = torch.cat([turn.cos(), turn.sin()], dim=1)
    slots = (torch.randperm(4 * BLOCK, generator=numbers.generator)[:tokens]).int()
    attention = backend()
    query = replace(QUERY, num_heads=heads, num_kv_heads=heads, dtype=dtype, kv_dtype=kv_dtype)
    layout = attention.kv_layout(query)
    apart, fused = (
        [torch.zeros((4, *layout.block_shape), dtype=torch_dtype(layout.dtype)) for _ in range(2)] for _ in range(2)
    )
    turned = torch.empty(tokens, heads * head_dim, dtype=element)
    import_module("platforms._shared.triton.ops").rotate(key, angles, turned, head_dim=head_dim)
    attention.write_kv(turned, value, apart, slots)
    attention.write_rotated_kv(key, angles, value, fused, slots)
    wanted = torch.empty(tokens, heads * head_dim)
    ops.rope_reference(key.float(), angles, wanted, head_dim=head_dim)
    assert torch.allclose(turned.float(), wanted, atol=0.05)
    assert all(map(torch.equal, apart, fused))


# --- the interpreter -----------------------------------------------------------------------------------------


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    repaired = import_module("interpreter_bfloat16")
    data = torch.cat(
        [torch.randn(1000), torch.tensor([0.0, -0.0, float("inf"), 1.00390625, 1.01171875, 3.4e38, 1e-40])]
    )
    bits = torch.from_numpy(repaired.narrowed(data.numpy())).view(torch.bfloat16)
    assert torch.equal(bits, data.bfloat16())
    assert torch.equal(torch.from_numpy(repaired.widened(bits.view(torch.uint16).numpy())), bits.float())
    assert torch.from_numpy(repaired.narrowed(torch.tensor([float("nan")]).numpy())).view(torch.bfloat16).isnan()


# --- what is compiled ----------------------------------------------------------------------------------------


def test_every_kernel_is_among_the_compiled_variants() -> None:
    variants = import_module("variants")
    named = {variant.kernel for variant in variants.variants("sm_90", whole=False)}
    found = {
        f"{file.stem}.{node.name}"
        for file in (ROOT / "platforms/_shared/triton/kernels").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and "Grid:" in (ast.get_docstring(node) or "")  # others are parts of them
    }
    assert found == named


def test_what_ci_compiles_is_a_part_of_the_whole_and_few_enough() -> None:
    variants, compiling = import_module("variants"), import_module("compile_kernels")
    counts = 0
    for target in compiling.TARGETS:
        few = {variant.label for variant in variants.variants(target.name, whole=False)}
        assert few <= {variant.label for variant in variants.variants(target.name, whole=True)}
        counts += len(few)
    assert 100 < counts <= compiling.MOST
