"""The native kernels against plain torch in float32, on every instruction-set tier of this processor.

Error bound: |out - reference| <= 2e-6 * (1 + max|value|) in float32, plus half a unit in the last place of bfloat16
(2^-8 relative, as the result is rounded once) where the output is bfloat16. The reference reads the cache as the kernel
does, already rounded.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from platforms._shared import _native

pytestmark = pytest.mark.usefixtures("tier")

GUARD = 7.25
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A batch: `seqs` lists (computed tokens, new tokens) of each sequence."""

    seqs: tuple[tuple[int, int], ...]
    num_kv_heads: int = 3
    group: int = 3
    head_dim: int = 64
    block_size: int = 16
    window: int = 0
    dtype: str = "float32"
    cache_dtype: str = "float32"
    seed: int = 0

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim)


@dataclass
class Sequence:
    """Queries, keys and values of all positions of one sequence, in the dtype the model would compute."""

    query: torch.Tensor  # [length, num_heads, head_dim]
    key: torch.Tensor  # [length, num_kv_heads, head_dim]
    value: torch.Tensor


def make_sequences(case: Case) -> list[Sequence]:
    generator = torch.Generator().manual_seed(case.seed)
    dtype = DTYPES[case.dtype]

    def draw(length: int, heads: int) -> torch.Tensor:
        return torch.randn(length, heads, case.head_dim, generator=generator).to(dtype)

    return [
        Sequence(draw(a + b, case.num_heads), draw(a + b, case.num_kv_heads), draw(a + b, case.num_kv_heads))
        for a, b in case.seqs
    ]


def cached(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """As the cache holds it, in float32: int8 as multiples of a scale for each token and head."""
    if dtype != "int8":
        return x.to(DTYPES[dtype]).float()
    largest = x.float().abs().amax(dim=-1, keepdim=True)
    return (x.float() * (torch.tensor(127.0) / largest)).round() * (largest / 127)


def reference(case: Case, sequence: Sequence, num_computed: int, *, absolute: bool = False) -> torch.Tensor:
    """Attention of the sequence's positions from num_computed on, in float32: [new tokens, num_heads, head_dim].

    absolute: of the values' absolute values, which is the magnitude that the rounding of weights scales with.
    """
    length = sequence.query.shape[0]
    query = sequence.query[num_computed:].float()
    key, value = (
        cached(x, case.cache_dtype).repeat_interleave(case.group, dim=1) for x in (sequence.key, sequence.value)
    )
    scores = torch.einsum("qhd,khd->hqk", query, key) * case.scale
    behind = torch.arange(num_computed, length)[:, None] - torch.arange(length)[None, :]
    hidden = behind < 0
    if case.window:
        hidden |= behind >= case.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value.abs() if absolute else value)


class Cache:
    """A paged cache whose unused slots hold NaN, with shuffled block tables and a guard around it."""

    def __init__(self, case: Case, lengths: list[int]) -> None:
        self.case = case
        counts = [-(-length // case.block_size) for length in lengths]
        num_blocks = sum(counts) + 3
        width = -(-case.head_dim // 16) * 16
        shape = (num_blocks, case.num_kv_heads, case.block_size, width)
        if case.cache_dtype == "int8":  # a NaN scale in every token
            nan = torch.tensor(torch.nan).view(1).view(torch.int8)
            self.key = nan.repeat(math.prod(shape) // 4 + math.prod(shape[:3]))
        else:
            self.key = torch.full(shape, torch.nan, dtype=DTYPES[case.cache_dtype])
        self.value = self.key.clone()
        order = (torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(case.seed)) + 1).tolist()
        self.tables = torch.full((len(lengths), max(counts, default=0) + 2), 0, dtype=torch.int32)
        for row, count in enumerate(counts):
            self.tables[row, :count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)

    def slots(self, row: int, first: int, last: int) -> torch.Tensor:
        positions = torch.arange(first, last)
        blocks = self.tables[row, positions // self.case.block_size]
        return (blocks * self.case.block_size + positions % self.case.block_size).to(torch.int32)

    def write(self, row: int, sequence: Sequence, first: int, last: int) -> None:
        packed = torch.cat([sequence.key[first:last], sequence.value[first:last]], dim=1).contiguous()
        value = packed[:, self.case.num_kv_heads :]
        slots = self.slots(row, first, last)
        _native.kv_write(
            packed.data_ptr(), value.data_ptr(), self.key.data_ptr(), self.value.data_ptr(), slots.data_ptr(),
            last - first, self.case.num_kv_heads, self.case.head_dim, self.case.block_size,
            packed.stride(0), packed.stride(0), self.case.dtype, self.case.cache_dtype,
        )  # fmt: skip

    def attend(self, rows: list[int], sequences: list[Sequence], spans: list[tuple[int, int]]) -> list[torch.Tensor]:
        """Outputs of positions [first, last) of each row's sequence, all in one call, guards checked."""
        case = self.case
        query = torch.cat([s.query[first:last] for s, (first, last) in zip(sequences, spans, strict=True)])
        counts = torch.tensor([0] + [last - first for first, last in spans])
        query_start = counts.cumsum(0).to(torch.int32)
        seq_lens = torch.tensor([last for _, last in spans], dtype=torch.int32)
        tables = self.tables[rows].contiguous()
        width = case.num_heads * case.head_dim
        out = torch.full((query.shape[0] + 2, width + 5), GUARD, dtype=DTYPES[case.dtype])
        _native.paged_attention(
            query.data_ptr(), query.stride(0), self.key.data_ptr(), self.value.data_ptr(),
            tables.data_ptr(), tables.stride(0), query_start.data_ptr(), seq_lens.data_ptr(),
            out[1:].data_ptr(), out.stride(0), len(rows), case.num_heads, case.num_kv_heads, case.head_dim,
            case.block_size, case.scale, case.window, case.dtype, case.cache_dtype,
        )  # fmt: skip
        assert (out[[0, -1]] == GUARD).all() and (out[:, width:] == GUARD).all(), "written outside the output"
        result = out[1:-1, :width].reshape(-1, case.num_heads, case.head_dim)
        return list(torch.split(result, counts[1:].tolist()))


def run(case: Case) -> tuple[list[Sequence], list[torch.Tensor]]:
    """The whole batch in one step, after its computed tokens were written in an earlier one."""
    sequences = make_sequences(case)
    cache = Cache(case, [a + b for a, b in case.seqs])
    for row, (sequence, (computed, new)) in enumerate(zip(sequences, case.seqs, strict=True)):
        cache.write(row, sequence, 0, computed)
        cache.write(row, sequence, computed, computed + new)
    spans = [(a, a + b) for a, b in case.seqs]
    return sequences, cache.attend(list(range(len(sequences))), sequences, spans)


def check(case: Case) -> None:
    sequences, outputs = run(case)
    for sequence, output, (computed, new) in zip(sequences, outputs, case.seqs, strict=True):
        assert output.shape[0] == new
        if new == 0:
            continue
        expected = reference(case, sequence, computed)
        magnitude = reference(case, sequence, computed, absolute=True)
        bound = torch.full_like(expected, 2e-6 * (1 + sequence.value.float().abs().max().item()))
        if case.dtype == "bfloat16":
            bound += expected.abs() * 2**-8
            if case.cache_dtype != "float32":  # so are the weights
                bound += magnitude * 2**-8
        error = (output.float() - expected).abs()
        assert (error <= bound).all(), f"error {error.max():.3e}, bound {bound.min():.3e}"


MIXED = ((0, 37), (64, 1), (15, 1), (0, 1), (16, 1), (17, 1), (100, 29), (0, 0), (130, 1))


@pytest.mark.parametrize("head_dim", [7, 20, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantised", [False, True])
def test_head_dims(head_dim: int, dtype: str, quantised: bool) -> None:
    check(Case(MIXED, head_dim=head_dim, dtype=dtype, cache_dtype="int8" if quantised else dtype))


@pytest.mark.parametrize(("num_kv_heads", "group"), [(1, 1), (4, 1), (3, 3), (2, 8), (1, 71)])
def test_grouped_heads(num_kv_heads: int, group: int) -> None:
    check(Case(MIXED, num_kv_heads=num_kv_heads, group=group, head_dim=32))


@pytest.mark.parametrize("window", [1, 2, 16, 63, 64, 65, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sliding_window(window: int, dtype: str) -> None:
    check(Case(MIXED, window=window, head_dim=32, dtype=dtype, cache_dtype=dtype))


LONG = ((700, 1), (511, 1), (512, 1), (250, 12), (0, 520))


@pytest.mark.parametrize("window", [0, 100, 300])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "int8")]
)
def test_long_contexts(window: int, dtype: str, cache_dtype: str) -> None:
    check(Case(LONG, window=window, dtype=dtype, cache_dtype=cache_dtype, head_dim=32))


@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_in_splits_of_a_long_context(window: int, dtype: str) -> None:
    """A long sequence alone has its splits handed out to the threads; in company, and in prefill, it has not."""
    case = Case(LONG, 1, 3, 32, window=window, dtype=dtype, cache_dtype=dtype)
    sequences, batched = run(case)
    cache = Cache(case, [701])
    for threads in (1, 2, 3):
        _native.set_num_threads(threads)
        for first, last in ((0, 701), (690, 701), (700, 701)):
            cache.write(0, sequences[0], 0, last)
            (output,) = cache.attend([0], sequences[:1], [(first, last)])
            assert same_bits(output[-1], batched[0][-1]), f"{threads} threads, positions {first} to {last}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("block_size", [1, 7, 16, 64, 100])
def test_block_sizes_and_dtypes(block_size: int, dtype: str, cache_dtype: str) -> None:
    check(Case(MIXED, block_size=block_size, dtype=dtype, cache_dtype=cache_dtype, head_dim=48))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seqs=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 70)), min_size=1, max_size=5),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    head_dim=st.integers(1, 100),
    block_size=st.integers(1, 40),
    window=st.integers(0, 150),
    seed=st.integers(0, 2**31),
)
def test_any_batch(
    seqs: list[tuple[int, int]], num_kv_heads: int, group: int, head_dim: int, block_size: int, window: int,
    seed: int,
) -> None:  # fmt: skip
    if not any(new for _, new in seqs):
        seqs = [*seqs, (3, 1)]
    check(Case(tuple(seqs), num_kv_heads, group, head_dim, block_size, window, seed=seed))


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [20, 64])
@pytest.mark.parametrize("quantised", [False, True])
def test_same_bits_alone_batched_chunked_and_threaded(window: int, dtype: str, head_dim: int, quantised: bool) -> None:
    length = 203
    kv = "int8" if quantised else dtype
    case = Case(((0, length), (90, 3), (0, 50)), window=window, dtype=dtype, cache_dtype=kv, head_dim=head_dim)
    sequences, batched = run(case)
    whole = batched[0]
    cache = Cache(case, [length])
    _native.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(run(case)[1], batched, strict=True)), "two threads"
    for chunk in (1, 2, 13, 64, 100, length):
        for first in range(0, length, chunk):
            last = min(first + chunk, length)
            cache.write(0, sequences[0], first, last)
            (output,) = cache.attend([0], sequences[:1], [(first, last)])
            assert same_bits(output, whole[first:last]), f"positions {first} to {last}, chunks of {chunk}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integers = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def test_large_scores_do_not_overflow() -> None:
    case = Case(((0, 70),), head_dim=32)
    sequences = make_sequences(case)
    sequences[0].query *= 1000
    cache = Cache(case, [70])
    cache.write(0, sequences[0], 0, 70)
    (output,) = cache.attend([0], sequences, [(0, 70)])
    torch.testing.assert_close(output, reference(case, sequences[0], 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16", "int8"])
def test_a_bad_key_spoils_only_the_rows_that_see_it(poison: float, cache_dtype: str) -> None:
    case = Case(((0, 80),), head_dim=32, window=10, cache_dtype=cache_dtype)
    sequences, (clean,) = run(case)
    cache = Cache(case, [80])
    sequences[0].key[40] = poison
    cache.write(0, sequences[0], 0, 80)
    (output,) = cache.attend([0], sequences, [(0, 80)])
    assert output[40:50].isnan().any(dim=(1, 2)).all()
    rest = [position for position in range(80) if not 40 <= position < 50]
    assert torch.equal(output[rest], clean[rest])


def test_kv_write_rounds_to_nearest_even_and_skips_negative_slots() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (1024,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    edges = torch.tensor([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800001, 0x00000001], dtype=torch.int32)
    source = torch.cat([bits, edges, -edges]).view(torch.float32)
    source = torch.cat([source, torch.zeros(-len(source) % 16)]).reshape(-1, 1, 16)
    cache = torch.full((2, 1, len(source), 16), GUARD, dtype=torch.bfloat16)
    slots = torch.arange(len(source), dtype=torch.int32) + len(source)
    slots[5] = -1
    _native.kv_write(
        source.data_ptr(), source.data_ptr(), cache.data_ptr(), cache.clone().data_ptr(), slots.data_ptr(),
        len(source), 1, 16, len(source), 16, 16, "float32", "bfloat16",
    )  # fmt: skip
    expected = source.to(torch.bfloat16)[:, 0]
    expected[5] = GUARD
    assert torch.equal(cache[0, 0], torch.full_like(cache[0, 0], GUARD))
    written = cache[1, 0]
    assert torch.equal(written.isnan(), expected.isnan())
    assert same_bits(written.nan_to_num(1.0), expected.nan_to_num(1.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_lie_in_panels(dtype: str) -> None:
    """The layout that csrc/cpu/kernels/kernels.hpp describes."""
    case = Case(((0, 64),), 2, 1, 32, block_size=32, dtype=dtype, cache_dtype=dtype)
    (sequence,), cache = make_sequences(case), Cache(case, [64])
    cache.write(0, sequence, 0, 64)
    blocks, word = cache.tables[0, :2].long(), 4 // DTYPES[dtype].itemsize
    keys = cache.key[blocks].view(2, 2, 2, 32 // word, 16, word)  # block, head, panel, word, key, dim
    values = cache.value[blocks].view(2, 2, 2, 32 // word, 16, word)  # block, head, panel, word, dim, key
    assert torch.equal(keys.permute(0, 2, 4, 1, 3, 5).reshape(64, 2, 32), sequence.key)
    assert torch.equal(values.permute(0, 3, 5, 1, 2, 4).reshape(64, 2, 32), sequence.value)


def test_int8_rounds_to_the_nearest_multiple_of_a_scale_for_each_token_and_head() -> None:
    case = Case(((0, 16),), 2, 1, 32, cache_dtype="int8")
    (sequence,), cache = make_sequences(case), Cache(case, [16])
    sequence.key[3, 1] = 0
    cache.write(0, sequence, 0, 16)
    block = cache.key.view(-1, 2, 16 * 36)[cache.tables[0, 0].long()]
    integers, scales = block[:, : 16 * 32].view(2, 32, 16), block[:, 16 * 32 :].view(torch.float32)
    found = (integers * scales[:, None]).permute(2, 0, 1)
    torch.testing.assert_close(found, cached(sequence.key, "int8").nan_to_num(0), rtol=1e-6, atol=0)


GOOD = {
    "query": 64, "query_stride": 64, "key_cache": 64, "value_cache": 64, "block_tables": 64, "block_table_stride": 1,
    "query_start": 64, "seq_lens": 64, "out": 64, "out_stride": 64, "num_seqs": 0, "num_heads": 1, "num_kv_heads": 1,
    "head_dim": 64, "block_size": 16, "scale": 0.125, "window": 0, "dtype": "float32", "cache_dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_cache", 0), ("value_cache", 0), ("query_stride", 63), ("out_stride", 63), ("num_seqs", -1),
        ("num_heads", 0), ("num_kv_heads", 0), ("head_dim", 0), ("head_dim", 257), ("block_size", 0),
        ("block_table_stride", -1), ("scale", float("nan")), ("window", -1), ("dtype", "float64"),
        ("cache_dtype", "float16"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        _native.paged_attention(**{**GOOD, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("seq_len", "query_start"), [(1, [0, 2]), (33, [0, 1]), (1, [1, 0]), (1, [-1, 0])])
def test_a_batch_that_does_not_fit_its_block_table_is_refused(seq_len: int, query_start: list[int]) -> None:
    case = Case(((0, 1),), num_kv_heads=1, group=1)
    buffer = torch.zeros(64)
    arrays = [torch.tensor(x, dtype=torch.int32) for x in ([0, 0], query_start, [seq_len])]
    tables, start, lens = (array.data_ptr() for array in arrays)
    arguments = {**GOOD, "num_seqs": 1, "block_table_stride": 2, "block_tables": tables, "query_start": start}
    arguments |= {"seq_lens": lens, "query": buffer.data_ptr(), "out": buffer.data_ptr()}
    assert case.block_size * 2 < 33
    with pytest.raises(ValueError, match=r"^(seq_lens|query_start): "):
        _native.paged_attention(**arguments)  # type: ignore[arg-type]


def test_unknown_tier_and_thread_count_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'mmx' is not available .*scalar"):
        _native.set_isa("mmx")
    with pytest.raises(ValueError, match="num_threads: must be at least 1, got 0"):
        _native.set_num_threads(0)


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_environment_chooses_the_tier(tier: str) -> None:
    code = "from platforms._shared import _native; print(_native.isa())"
    assert run_python(code, CORE_CPU_ISA=tier).stdout.strip() == tier
    refused = run_python(code, CORE_CPU_ISA="sse9")
    assert refused.returncode != 0
    assert "ValueError: CORE_CPU_ISA: 'sse9' is not available on this processor; it has: scalar" in refused.stderr
