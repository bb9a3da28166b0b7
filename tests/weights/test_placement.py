"""Which rows of a model's weights are kept in which scheme, and that they are filled with the file's own blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Types

from core import ops
from core.config import Config, parse_options, resolve
from core.defaults import TorchMemory
from core.layers import Builder, Embedding, Linear
from core.platform import MemoryInfo, QuantizedRows
from core.program import NUM_TOKENS, OpProgram, Storage
from core.quantization import SCHEMES, quantized
from core.recording import RecordedModel, record_model
from core.types import DType
from core.weights import loader
from core.weights.placement import Parts, plan_parts
from core.weights.quantized import open_weights

WriteGGUF = Callable[..., Path]
HIDDEN = 64
METADATA = {
    "llama.embedding_length": HIDDEN, "llama.feed_forward_length": 96, "llama.block_count": 1,
    "tokenizer.ggml.eos_token_id": 0,
}  # fmt: skip
SHAPES = {
    "token_embd": (50, HIDDEN), "blk.0.attn_q": (64, HIDDEN), "blk.0.attn_k": (32, HIDDEN),
    "blk.0.attn_v": (32, HIDDEN), "blk.0.attn_output": (HIDDEN, 64), "blk.0.ffn_gate": (96, HIDDEN),
    "blk.0.ffn_up": (96, HIDDEN), "blk.0.ffn_down": (HIDDEN, 96),
}  # fmt: skip
TYPES = {"token_embd": Types.Q8_0, "blk.0.attn_v": Types.Q5_1, "blk.0.ffn_down": Types.F16}


@pytest.fixture
def config(write_gguf: WriteGGUF) -> Config:
    """A one-layer Llama of Q4_1, but for the tensors in TYPES."""
    numbers = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        kind = TYPES.get(name, Types.Q4_1)
        data = numbers.standard_normal(shape).astype(np.float32)
        tensors[f"{name}.weight"] = (gguf.quants.quantize(data, kind), kind.name)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        tensors[f"{name}.weight"] = np.ones(HIDDEN, np.float32)
    return resolve(str(write_gguf(tensors, METADATA)), parse_options({"platform": "cpu"}))


def with_(config: Config, quantization: str) -> Config:
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, quantization=quantization))


def planned(config: Config, schemes: Sequence[str] = SCHEMES) -> tuple[RecordedModel, dict[str, Parts]]:
    model = record_model(config)
    parts = plan_parts(config, model.program, model.parameters, schemes)
    names = {parameter.value.index: parameter.value.name for parameter in model.parameters}
    return model, {names[index]: own for index, own in parts.items()}


def load(config: Config, schemes: Sequence[str] = SCHEMES) -> dict[str, torch.Tensor]:
    model = record_model(config)
    parts = plan_parts(config, model.program, model.parameters, schemes)
    memory = TorchMemory("cpu", lambda: MemoryInfo(1 << 30, 1 << 30))
    with closing(open_weights(config)) as reader:
        handles = loader.load_parameters(model.parameters, reader, memory, lambda *_: None, parts)
    return {each.value.name: memory.download(handles[each.value.index]) for each in model.parameters}


def test_a_files_types_are_kept(config: Config) -> None:
    assert config.model.quantization == "stored"
    _, parts = planned(config)
    found = {name: [(part.rows, part.scheme) for part in own] for name, own in parts.items()}
    qkv, gate_up, out = (next(name for name in found if word in name) for word in ("qkv", "gate_up", "o_proj"))
    assert found.pop(qkv) == [(96, "q4_1"), (32, "q5_1")]
    assert found.pop(gate_up) == [(192, "q4_1")]
    assert found.pop(out) == [(64, "q4_1")]
    (table,) = found.values()  # which is the head too; ffn_down is of floats
    assert table == [(50, "q8_0")]


def test_what_the_platform_lacks_is_dequantised(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "core"):
        _, parts = planned(config, ["int8", "q4_1"])
    assert "q5_1, q8_0 are kept in bfloat16" in caplog.text
    (qkv,) = (own for name, own in parts.items() if "qkv" in name)
    assert qkv == (QuantizedRows(96, "q4_1"), QuantizedRows(32, None))
    assert not any("embed" in name for name in parts)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_online_schemes_take_every_matrix(config: Config, scheme: str) -> None:
    model, parts = planned(with_(config, scheme))
    matrices = {each.value.name: each.value.shape[0] for each in model.parameters if len(each.value.shape) == 2}
    assert parts == {name: (QuantizedRows(rows, scheme),) for name, rows in matrices.items()}


def test_none_keeps_none(config: Config) -> None:
    assert planned(with_(config, "none"))[1] == {}


def test_blocks_are_loaded_in_the_order_of_the_rows(config: Config) -> None:
    """What is kept as blocks reads as what dequantising at load gives, q and k and their permutation included."""
    exact = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, dtype=DType.FLOAT32))
    kept, dequantised = load(exact), load(with_(exact, "none"))
    for name, weight in dequantised.items():
        assert torch.equal(kept[name], weight), name


def test_a_gguf_can_be_quantised_anew(config: Config) -> None:
    exact = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, dtype=DType.FLOAT32))
    kept, dequantised = load(with_(exact, "int8")), load(with_(exact, "none"))
    for name, weight in dequantised.items():
        wanted = quantized(weight, "int8") if weight.dim() == 2 else weight
        assert torch.equal(kept[name], wanted), name


def test_large_tensors_come_in_chunks(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(config)
    monkeypatch.setattr(loader, "_CHUNK", 1)
    monkeypatch.setattr(loader, "_CHUNK_ROWS", 16)
    chunked = load(config)
    assert all(torch.equal(chunked[name], weight) for name, weight in whole.items())


def test_a_matrix_of_another_op_stays_as_it_is(config: Config) -> None:
    """Only linear and embedding read quantised weights."""
    program = OpProgram()
    builder = Builder(program, DType.FLOAT32)
    table, head = Embedding(builder, "table", 8, 32), Linear(builder, "head", [("head", 8)], 32)
    ids = program.new("ids", (NUM_TOKENS,), DType.INT32, Storage.INPUT)
    ops.record(program, lambda: program.keep(head(ops.select_rows(table.weight, ids)), "logits"))
    parts = plan_parts(with_(config, "int8"), program, builder.parameters, SCHEMES)
    assert parts == {head.weight.index: (QuantizedRows(8, "int8"),)}


class TestShards:
    """Rows are cut anywhere, columns where a block ends; where that is not so, the weight is dequantised."""

    @pytest.mark.parametrize(("dim", "inputs", "kept"), [(0, 64, True), (1, 64, True), (1, 48, False), (1, 32, False)])
    def test_int4(self, config: Config, dim: int, inputs: int, kept: bool) -> None:
        program = OpProgram()
        builder = Builder(program, DType.FLOAT32, rank=1, world=2)
        layer = Linear(builder, "layer", [("layer", 8)], inputs, shard_dim=dim)
        x = program.new("x", (NUM_TOKENS, layer.weight.shape[1]), DType.FLOAT32, Storage.INPUT)
        ops.record(program, lambda: program.keep(layer(x), "y"))
        parts = plan_parts(with_(config, "int4"), program, builder.parameters, SCHEMES)
        rows = 4 if dim == 0 else 8
        assert parts == ({layer.weight.index: (QuantizedRows(rows, "int4"),)} if kept else {})

    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize("dim", [0, 1])
    def test_blocks(self, config: Config, dim: int, rank: int) -> None:
        name = "model.layers.0.self_attn.q_proj"
        builder = Builder(OpProgram(), DType.FLOAT32, rank, 2)
        Linear(builder, "q", [(name, 64)], HIDDEN, shard_dim=dim)
        (parameter,) = builder.parameters
        memory = TorchMemory("cpu", lambda: MemoryInfo(1 << 30, 1 << 30))
        with closing(open_weights(config)) as reader:
            parts = {parameter.value.index: (QuantizedRows(parameter.value.resolve(0, 0)[0], "q4_1"),)}
            (handle,) = loader.load_parameters([parameter], reader, memory, lambda *_: None, parts).values()
            whole = torch.from_numpy(reader.read(f"{name}.weight"))
        assert torch.equal(handle, whole.chunk(2, dim)[rank])
