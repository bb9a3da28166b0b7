"""A whole program as one model: what it computes, what its kernels raise, and that nothing of it stays behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from core import ops
from core.defaults import EagerExecutable, ReferenceAttention
from core.errors import DeviceLost, Unsupported
from core.platform import Bindings, Bucket
from core.program import NUM_SEQS, NUM_TOKENS, Dim, OpProgram, Storage
from core.types import DType
from core_openvino.attention import PagedAttention
from core_openvino.compiler import CompiledProgram
from core_openvino.device import Device
from core_openvino.host_op import HostOp

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 8, 4
HIDDEN = 32
LIMITS = Bucket(8, 4)
DEVICE = Device(1)
SPLIT = (HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM)


def layer(dtype: DType = DType.FLOAT32) -> OpProgram:
    """A layer's attention, whose queries and keys are views that are rotated, and a second read of the same cache."""
    program = OpProgram()

    def new(name: str, *shape: Any, kind: DType = DType.INT32, storage: Storage = Storage.INPUT) -> Any:
        return program.new(name, shape, kind, storage)

    ids, positions, slots = (new(name, NUM_TOKENS) for name in ("ids", "positions", "slots"))
    table, lens, start = new("table", NUM_SEQS, 3), new("lens", NUM_SEQS), new("start", Dim("num_seqs", 1))
    embed, norm = (new(n, *s, kind=dtype, storage=Storage.WEIGHT) for n, s in (("e", (5, HIDDEN)), ("n", (HIDDEN,))))
    weight = new("w", sum(SPLIT), HIDDEN, kind=dtype, storage=Storage.WEIGHT)
    freq = new("f", DIM // 2, kind=DType.FLOAT32, storage=Storage.WEIGHT)
    cache = new("kv", kind=dtype, storage=Storage.CACHE)

    def forward() -> None:
        x = ops.rms_norm(ops.embedding(ids, embed), norm, eps=1e-5)
        query, key, value = ops.split(ops.linear(x, weight), SPLIT)
        angles = ops.rope_angles(positions, freq)
        ops.kv_write(ops.rope(key, angles, head_dim=DIM), value, cache, slots)
        attrs: dict[str, Any] = {"head_dim": DIM, "num_kv_heads": KV_HEADS, "scale": 0.3, "window": None}
        read = (cache, table, start, lens)
        out = ops.attention(ops.rope(query, angles, head_dim=DIM), *read, **attrs)
        again = ops.attention(query, *read, **attrs)
        normed, total = ops.add_rms_norm(out, again, norm, eps=1e-5)
        program.keep(normed, "normed")
        program.keep(total, "total")

    return ops.record(program, forward)


def bind(program: OpProgram, attention: ReferenceAttention, seed: int = 0) -> Bindings:
    """Buffers as large as LIMITS with the weights in them; the cache holds stale NaN."""
    torch.manual_seed(seed)
    handles: dict[int, Any] = {}
    block = (KV_HEADS, BLOCK, DIM) if not isinstance(attention, PagedAttention) else (BLOCK, KV_HEADS, DIM)
    for value in program.values:
        if value.storage is Storage.CACHE:
            handles[value.index] = tuple(torch.full((9, *block), float("nan")) for _ in range(2))
        elif value.storage is not Storage.ACTIVATION and value.base is None:
            shape = value.resolve(LIMITS.num_tokens, LIMITS.num_seqs)
            made = torch.randn(shape) if value.storage is Storage.WEIGHT else torch.zeros(shape)
            handles[value.index] = made.to(getattr(torch, value.dtype))
    offsets = {value.index: 4096 * value.index for value in program.values}
    arena = torch.zeros(4096 * (len(program.values) + 1), dtype=torch.uint8)
    kernels = {**ops.REFERENCE, "kv_write": attention.write_kv, "attention": attention.forward}
    return Bindings(program, handles, arena, offsets, LIMITS, kernels)


#: Prefill of three tokens beside a first token; then one more token of each.
STEPS: tuple[Mapping[str, list[Any]], ...] = (
    {"ids": [1, 2, 3, 4], "positions": [0, 1, 2, 0], "slots": [4, 5, 6, 16], "table": [[1, 2, 3], [4, 5, 6]],
     "start": [0, 3, 4], "lens": [3, 1]},
    {"ids": [0, 1], "positions": [3, 1], "slots": [7, 17], "table": [[1, 2, 3], [4, 5, 6]], "start": [0, 1, 2],
     "lens": [4, 2]},
)  # fmt: skip


def run(bindings: Bindings, executable: Any) -> list[Tensor]:
    """Both steps; the outputs of each."""
    outputs = []
    inputs = bindings.program.named(Storage.INPUT)
    for step in STEPS:
        for name, numbers in step.items():
            given = torch.tensor(numbers, dtype=torch.int32)
            bindings.handle(inputs[name])[tuple(slice(size) for size in given.shape)] = given
        executable.run(len(step["ids"]), len(step["lens"]))
        outputs += [bindings.handle(value)[: len(step["ids"])].clone() for value in bindings.program.of(Storage.OUTPUT)]
    return outputs


def compiled(bindings: Bindings, attention: PagedAttention) -> CompiledProgram:
    return CompiledProgram(bindings, DEVICE, attention)


def test_it_computes_what_the_references_do_step_after_step() -> None:
    reference, attention = ReferenceAttention(), PagedAttention()
    expected_of, bindings = bind(layer(), reference), bind(layer(), attention)
    expected = run(expected_of, EagerExecutable(expected_of))
    for one, other in zip(run(bindings, compiled(bindings, attention)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_step_stays_within_its_rows() -> None:
    attention = PagedAttention()
    bindings = bind(layer(), attention)
    for value in bindings.program.of(Storage.OUTPUT):
        bindings.handle(value).fill_(7.5)
    run(bindings, compiled(bindings, attention))
    assert all((bindings.handle(value)[4:] == 7.5).all() for value in bindings.program.of(Storage.OUTPUT))


def test_what_a_kernel_raises_arrives_as_it_is() -> None:
    class Refusing(PagedAttention):
        def forward(self, *args: Any, **attrs: Any) -> None:
            raise Unsupported("this attention", "it is a test")

    bindings = bind(layer(), Refusing())
    with pytest.raises(Unsupported, match="this attention is not supported: it is a test"):
        run(bindings, compiled(bindings, Refusing()))


def test_what_openvino_raises_is_the_device_lost() -> None:
    attention = PagedAttention()
    bindings = bind(layer(), attention)
    executable = compiled(bindings, attention)
    ids = bindings.program.named(Storage.INPUT)["ids"]
    run(bindings, executable)
    bindings.handles[ids.index].fill_(1 << 30)  # type: ignore[index]  # beyond the vocabulary
    executable._request = _Failing()  # type: ignore[assignment]
    with pytest.raises(DeviceLost, match="2 tokens, 2 sequences: the device is gone"):
        executable.run(2, 2)


class _Failing:
    def infer(self) -> None:
        raise RuntimeError("the device is gone")


def test_an_op_of_a_newer_core_is_refused_with_the_way_out() -> None:
    program, attention = layer(), PagedAttention()
    program.call("new_op", (program.values[0],), (((NUM_TOKENS,), DType.FLOAT32),))
    with pytest.raises(Unsupported, match=r"op new_op.*--no-compile"):
        compiled(bind(program, attention), attention)


def test_nothing_stays_in_memory() -> None:
    """OpenVINO keeps an operation written in Python for ever: what it calls must not be kept by it."""
    attention = PagedAttention()
    bindings = bind(layer(), attention)
    executable = compiled(bindings, attention)
    run(bindings, executable)
    weights = [weakref.ref(handle) for handle in bindings.handles.values() if isinstance(handle, Tensor)]
    step = weakref.ref(executable._step)
    del bindings, executable
    gc.collect()
    assert step() is None
    assert not any(ref() is not None for ref in weights)


def test_a_step_makes_no_operation_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO asks for a copy of each in every step: the same one, or memory would grow with every token."""
    attention = PagedAttention()
    bindings = bind(layer(), attention)
    executable = compiled(bindings, attention)
    run(bindings, executable)
    made: list[int] = []
    monkeypatch.setattr(HostOp, "__init__", lambda self, *arguments: made.append(1))
    for _ in range(5):
        run(bindings, executable)
    assert made == []


@pytest.mark.skipif(not DEVICE.has_bfloat16(), reason="this processor has no bfloat16: it is not claimed here")
def test_bfloat16_stays_within_its_rounding() -> None:
    reference, attention = ReferenceAttention(), PagedAttention()
    expected_of, bindings = bind(layer(DType.BFLOAT16), reference), bind(layer(DType.BFLOAT16), attention)
    expected = run(expected_of, EagerExecutable(expected_of))
    for one, other in zip(run(bindings, compiled(bindings, attention)), expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.05)
