"""Captured steps and memory of the GPU platforms, on a device that is this host."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from core import ops
from core.errors import Unsupported
from core.platform import Bindings, Bucket
from core.program import NUM_SEQS, NUM_TOKENS, Dim, OpProgram, Storage
from core.types import DType
from platforms._shared.gpu.memory import _STAGING
from platforms._shared.gpu.program import GpuExecutable, PaddedInputs, fused

HEADS, DIM = 2, 4
WIDTH = HEADS * DIM


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    return import_module("fakegpu_platform")


def layer(*, rotated: int = DIM, keep_key: bool = False) -> OpProgram:
    """q, k and v out of one input, rotated, written and attended to."""
    program = OpProgram()
    qkv = program.new("qkv", (NUM_TOKENS, 3 * WIDTH), DType.FLOAT32, Storage.INPUT)
    angles = program.new("angles", (NUM_TOKENS, rotated), DType.FLOAT32, Storage.INPUT)
    slots = program.new("slots", (NUM_TOKENS,), DType.INT32, Storage.INPUT)
    table = program.new("table", (NUM_SEQS, 2), DType.INT32, Storage.INPUT)
    starts = program.new("starts", (Dim(NUM_SEQS.symbol, 1),), DType.INT32, Storage.INPUT)
    lengths = program.new("lengths", (NUM_SEQS,), DType.INT32, Storage.INPUT)
    cache = program.new("kv.0", (), DType.FLOAT32, Storage.CACHE)

    def forward() -> None:
        copied = ops.silu_mul(ops.linear(qkv, program.new("w", (6 * WIDTH, 3 * WIDTH), DType.FLOAT32, Storage.WEIGHT)))
        q, k, v = ops.split(copied, [WIDTH] * 3)
        q, k = ops.rope(q, angles, head_dim=DIM), ops.rope(k, angles, head_dim=DIM)
        ops.kv_write(k, v, cache, slots)
        out = ops.attention(q, cache, table, starts, lengths, head_dim=DIM, num_kv_heads=HEADS, scale=0.5, window=None)
        program.keep(ops.silu_mul(k if keep_key else out), "logits")

    return ops.record(program, forward)


def test_a_rotation_and_the_write_of_what_it_gives_become_one_call() -> None:
    program = layer()
    joined = fused(bindings(program), lambda *arguments: None).program
    assert [call.op for call in program.calls] == [
        "linear", "silu_mul", "rope", "rope", "kv_write", "attention", "silu_mul",
    ]  # fmt: skip
    assert [call.op for call in joined.calls] == [
        "linear",
        "silu_mul",
        "rope",
        "rope_kv_write",
        "attention",
        "silu_mul",
    ]
    write = joined.calls[3]
    assert [value.name if value else None for value in write.inputs[1:2] + write.inputs[3:]] == [
        "angles",
        "kv.0",
        "slots",
    ]


@pytest.mark.parametrize(
    "program", [layer(rotated=DIM - 2), layer(keep_key=True)], ids=["part of a head", "read again"]
)
def test_other_rotations_stay_calls_of_their_own(program: OpProgram) -> None:
    assert fused(bindings(program), lambda *arguments: None).program.calls == program.calls


def bindings(program: OpProgram) -> Bindings:
    limits = Bucket(8, 8)
    handles: dict[int, Any] = {}
    for storage in (Storage.INPUT, Storage.WEIGHT):
        for value in program.of(storage):
            dtype = torch.int32 if value.dtype is DType.INT32 else torch.float32
            handles[value.index] = torch.full(value.resolve(limits.num_tokens, limits.num_seqs), 7, dtype=dtype)
    return Bindings(program, handles, torch.zeros(0, dtype=torch.uint8), {}, limits, {})


def test_padding_is_tokens_of_nobody() -> None:
    program = layer()
    bound = bindings(program)
    PaddedInputs(bound).pad(3, 2, 6)
    inputs = {value.name: bound.handle(value) for value in program.of(Storage.INPUT)}
    assert inputs["slots"].tolist() == [7, 7, 7, 0, 0, 0, 7, 7]
    assert inputs["starts"].tolist() == [7, 7, 7, 3, 3, 3, 3, 7, 7]
    assert inputs["lengths"].tolist() == [7, 7, 0, 0, 0, 0, 7, 7]


def test_a_step_goes_to_the_smallest_graph_that_holds_it_or_to_none(fake: Any) -> None:
    program = OpProgram()
    x = program.new("x", (NUM_TOKENS, 4), DType.FLOAT32, Storage.INPUT)
    ops.record(program, lambda: (program.keep(ops.silu_mul(x), "logits"), None)[1])
    (logits,) = program.of(Storage.OUTPUT)
    handles = {x.index: torch.randn(9, 4), logits.index: torch.zeros(9, 2)}
    bound = Bindings(
        program, handles, torch.zeros(0, dtype=torch.uint8), {}, Bucket(9, 4), {"silu_mul": ops.REFERENCE["silu_mul"]}
    )
    device = fake.HostDevice()
    executable = GpuExecutable(bound, device)
    for tokens, replays in ((1, 1), (3, 2), (4, 3), (5, 3), (9, 3)):  # graphs are of 1, 2 and 4
        data = torch.randn(tokens, 4)
        handles[x.index][:tokens] = data
        executable.run(tokens, min(tokens, 4))
        wanted = torch.empty(tokens, 2)
        ops.silu_mul_reference(data, wanted)
        assert torch.equal(handles[logits.index][:tokens], wanted)
        assert device.replays == replays


def test_the_fake_device_refuses_a_read_by_the_host(fake: Any) -> None:
    value = torch.ones(1)
    with pytest.raises(Unsupported, match="the host cannot read a value while a graph is captured"):
        fake.HostDevice().capture(value.item)


def test_uploads_go_through_pinned_memory_until_it_is_full(fake: Any) -> None:
    device = fake.HostDevice()
    memory = fake.SealedGpuMemory(device)
    waits = []
    device.synchronize = lambda: waits.append(1)
    handle = memory.alloc((_STAGING // 16, 2), DType.FLOAT32, "inputs")  # half of it
    for turn in range(5):
        data = torch.full((_STAGING // 16, 2), turn, dtype=torch.int64)
        memory.upload(handle, data)
        data.fill_(-1)
        assert bool((memory.download(handle) == turn).all())
    assert len(waits) == 5 + 2  # each download's, and two turns that found it full
    with pytest.raises(ValueError, match="does not fit rows 3"):
        memory.upload(handle, torch.zeros(_STAGING // 16, 2), row=3)
