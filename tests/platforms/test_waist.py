"""The two test platforms keep the rules they stand for: each one is broken here, and must raise."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from core import ops
from core.defaults import EagerExecutable, ReferenceAttention
from core.errors import DeviceLost, OutOfDeviceMemory, Unsupported
from core.platform import AttentionBackend, Bindings, Bucket
from core.program import NUM_SEQS, NUM_TOKENS, Dim, OpProgram, Storage
from core.runner.arena import plan_arena
from core.types import DType

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 8, 4
WIDTH = (HEADS + 2 * KV_HEADS) * DIM
SHAPE = Bucket(8, 8)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.manual_seed(0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(name: str) -> Any:
    __import__(f"{name}_platform")
    return getattr(
        sys.modules[f"{name}_platform"], {"static": "StaticPlatform", "fakegraph": "FakeGraphPlatform"}[name]
    )()


def layer() -> OpProgram:
    """QKV in, one layer of attention and a norm of it out."""
    program = OpProgram()
    qkv = program.new("qkv", (NUM_TOKENS, WIDTH), DType.FLOAT32, Storage.INPUT)
    slots = program.new("slots", (NUM_TOKENS,), DType.INT32, Storage.INPUT)
    table = program.new("table", (NUM_SEQS, 3), DType.INT32, Storage.INPUT)
    start = program.new("start", (Dim("num_seqs", 1),), DType.INT32, Storage.INPUT)
    lens = program.new("lens", (NUM_SEQS,), DType.INT32, Storage.INPUT)
    weight = program.new("weight", (HEADS * DIM,), DType.FLOAT32, Storage.WEIGHT)
    cache = program.new("kv", (), DType.FLOAT32, Storage.CACHE)

    def forward() -> None:
        query, key, value = ops.split(qkv, (HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM))
        ops.kv_write(key, value, cache, slots)
        attrs: dict[str, Any] = {"head_dim": DIM, "num_kv_heads": KV_HEADS, "scale": 0.3, "window": 6}
        out = ops.attention(query, cache, table, start, lens, **attrs)
        program.keep(ops.rms_norm(out, weight, eps=1e-5), "out")

    return ops.record(program, forward)


def bind(program: OpProgram, attention: AttentionBackend) -> Bindings:
    """Buffers for one step of SHAPE; the cache holds stale NaN."""
    handles: dict[int, Any] = {}
    for value in program.values:
        if value.storage in (Storage.INPUT, Storage.WEIGHT, Storage.OUTPUT) and value.base is None:
            shape = value.resolve(SHAPE.num_tokens, SHAPE.num_seqs)
            handles[value.index] = torch.zeros(shape, dtype=getattr(torch, value.dtype))
        elif value.storage is Storage.CACHE:
            handles[value.index] = tuple(torch.full((9, KV_HEADS, BLOCK, DIM), float("nan")) for _ in range(2))
    arena = plan_arena(program, SHAPE)
    kernels = {**ops.REFERENCE, "kv_write": attention.write_kv, "attention": attention.forward}
    return Bindings(program, handles, torch.zeros(max(arena.size, 1), dtype=torch.uint8), arena.offsets, SHAPE, kernels)


def fill(bindings: Bindings, seed: int) -> None:
    """Three sequences: a prefill of 4 tokens, a decode at position 0, one at position 0 of another block; padding."""
    torch.manual_seed(seed)
    inputs = bindings.program.named(Storage.INPUT)
    values = {
        "qkv": torch.randn(SHAPE.num_tokens, WIDTH),
        "slots": torch.tensor([4, 5, 6, 7, 16, 28, 0, 0]),
        "table": torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 0], *[[0, 0, 0]] * 5]),
        "start": torch.tensor([0, 4, 5, 6, 6, 6, 6, 6, 6]),
        "lens": torch.tensor([4, 1, 1, 0, 0, 0, 0, 0]),
    }
    for name, value in values.items():
        bindings.handle(inputs[name]).copy_(value)
    (weight,) = bindings.program.of(Storage.WEIGHT)
    bindings.handle(weight).copy_(torch.randn(HEADS * DIM))


def out(bindings: Bindings) -> Tensor:
    """The rows that are not padding."""
    (value,) = bindings.program.of(Storage.OUTPUT)
    return cast("Tensor", bindings.handle(value))[:6].clone()


def expected(seed: int) -> Tensor:
    bindings = bind(layer(), ReferenceAttention())
    fill(bindings, seed)
    EagerExecutable(bindings).run(SHAPE.num_tokens, SHAPE.num_seqs)
    return out(bindings)


def compiled(platform: Any, attention: AttentionBackend | None = None) -> tuple[Bindings, Any]:
    bindings = bind(layer(), attention or platform.attention()[0])
    return bindings, platform.compile(bindings, SHAPE)


@pytest.mark.parametrize("name", ["static", "fakegraph"])
def test_a_compiled_step_computes_what_the_references_do(name: str) -> None:
    bindings, executable = compiled(make(name))
    for seed in (1, 2):  # the second time on other values in the same buffers
        fill(bindings, seed)
        executable.run(SHAPE.num_tokens, SHAPE.num_seqs)
        assert not out(bindings).isnan().any()
        torch.testing.assert_close(out(bindings), expected(seed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["static", "fakegraph"])
def test_another_shape_raises(name: str) -> None:
    platform = make(name)
    _, executable = compiled(platform)
    for shape in ((7, 8), (8, 7), (16, 16)):
        with pytest.raises(Unsupported, match=f"{shape[0]} tokens, {shape[1]} sequences"):
            executable.run(*shape)
    for bucket in (None, Bucket(5, 5)) if name == "static" else (None,):
        with pytest.raises(Unsupported):
            platform.compile(bind(layer(), ReferenceAttention()), bucket)


class Peeking(ReferenceAttention):
    """Reads a length on the host, one way or another."""

    def __init__(self, read: Any) -> None:
        self._read = read

    def forward(self, *args: Any, **attrs: Any) -> None:
        self._read(args[4])


@pytest.mark.parametrize(
    "read",
    [
        lambda lens: lens.tolist(),
        lambda lens: lens[0].item(),
        lambda lens: int(lens[0]),
        lambda lens: bool(lens[0] > 1),
        lambda lens: lens.numpy(),
        lambda lens: lens.cpu(),
        lambda lens: lens[lens > 1],
        torch.nonzero,
        torch.unique,
        lambda lens: list(range(lens[0])),
    ],
)
def test_a_host_read_inside_a_captured_step_raises(read: Any) -> None:
    with pytest.raises(Unsupported, match="inside a step"):
        compiled(make("fakegraph"), Peeking(read))


def test_the_reference_attention_cannot_be_captured() -> None:
    with pytest.raises(Unsupported, match=r"Tensor\.tolist inside a step"):
        compiled(make("fakegraph"), ReferenceAttention())


@pytest.mark.parametrize("storage", [Storage.INPUT, Storage.WEIGHT, Storage.CACHE, Storage.OUTPUT])
def test_a_moved_buffer_raises(storage: Storage) -> None:
    bindings, executable = compiled(make("fakegraph"))
    value = bindings.program.of(storage)[0]
    old = bindings.handle(value)
    moved = tuple(plane.clone() for plane in old) if isinstance(old, Sequence) else old.clone()
    cast("dict[int, Any]", bindings.handles)[value.index] = moved
    with pytest.raises(DeviceLost, match="moved"):
        executable.run(SHAPE.num_tokens, SHAPE.num_seqs)


def test_an_allocation_after_the_first_step_raises() -> None:
    platform = make("fakegraph")
    platform.memory().alloc((2,), DType.FLOAT32, "inputs")
    _, executable = compiled(platform)
    platform.memory().alloc((2,), DType.FLOAT32, "inputs")
    executable.run(SHAPE.num_tokens, SHAPE.num_seqs)
    with pytest.raises(OutOfDeviceMemory, match="after the first step"):
        platform.memory().alloc((2,), DType.FLOAT32, "inputs")


def test_fakegraph_keeps_two_steps_in_flight() -> None:
    assert make("fakegraph").max_in_flight == 2
