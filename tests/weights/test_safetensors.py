"""safetensors: what the reference writes is read; what it would not write is refused."""

from __future__ import annotations

import json
import shutil
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from core.errors import CoreError, ModelNotFound, UnsupportedModel, WeightError
from core.types import DType
from core.weights.safetensors import INDEX_NAME, SafetensorsReader, weight_files

TORCH = {
    DType.FLOAT32: torch.float32, DType.FLOAT16: torch.float16, DType.BFLOAT16: torch.bfloat16, DType.INT32: torch.int32,
    DType.INT64: torch.int64, DType.INT8: torch.int8, DType.UINT8: torch.uint8, DType.BOOL: torch.bool,
}  # fmt: skip


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def as_torch(array: np.ndarray, dtype: DType) -> torch.Tensor:
    copy = torch.from_numpy(array.view(np.int16).copy() if dtype is DType.BFLOAT16 else array.copy())
    return copy.view(torch.bfloat16) if dtype is DType.BFLOAT16 else copy


# --- reading -------------------------------------------------------------------------------------------------


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    want = {dtype.value: (torch.randn(5, 3) * 4).to(kind) for dtype, kind in TORCH.items()}
    want |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 4)}
    save_file(want, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with closing(SafetensorsReader(tmp_path)) as reader:
        assert set(reader.tensors()) == set(want)
        for name, tensor in want.items():
            meta = reader.tensors()[name]
            assert (meta.shape, TORCH[meta.dtype]) == (tuple(tensor.shape), tensor.dtype)
            assert meta.nbytes == tensor.nbytes == reader.stored(name).nbytes
            assert torch.equal(as_torch(reader.read(name), meta.dtype), tensor)
            reader.release(name)
            assert torch.equal(as_torch(reader.read(name), meta.dtype), tensor)


def test_rows_are_views(tmp_path: Path) -> None:
    weight = torch.arange(24, dtype=torch.float32).reshape(6, 4)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    reader = SafetensorsReader(tmp_path)
    part = reader.read("w", slice(2, 5))
    reader.close()
    assert np.array_equal(part, weight[2:5].numpy())
    assert not part.flags.owndata
    assert not part.flags.writeable


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightError, match=r"tensor 'v': is in none of the model's"):
        SafetensorsReader(tmp_path).read("v")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny random Llama in at least three shards, as transformers saves it, and its tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM  # slow to import

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    path = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) >= 3
    return path, model.state_dict()


def test_sharded_models_are_one(sharded: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, want = sharded
    with closing(SafetensorsReader(path)) as reader:
        assert set(reader.tensors()) == set(want)
        for name, tensor in want.items():
            assert torch.equal(as_torch(reader.read(name), DType.BFLOAT16), tensor)


def test_the_digest_is_of_the_weights_not_of_the_files(
    sharded: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path, want = sharded
    tensors = {name: tensor.clone() for name, tensor in want.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    digests = {SafetensorsReader(folder).digest() for folder in (path, tmp_path)}
    assert len(digests) == 1
    tensors["model.layers.1.mlp.up_proj.weight"] *= 2  # a fine-tune: same shapes, other values
    save_file(tensors, tmp_path / "model.safetensors")
    assert SafetensorsReader(tmp_path).digest() not in digests


# --- finding the files ---------------------------------------------------------------------------------------


def copy_of(sharded: tuple[Path, dict[str, torch.Tensor]], target: Path) -> tuple[Path, dict[str, Any]]:
    shutil.copytree(sharded[0], target, dirs_exist_ok=True)
    return target, json.loads((target / INDEX_NAME).read_text())


def test_files_without_an_index(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "consolidated.safetensors", "adapter_model.safetensors"):
        save_file({name: torch.ones(1)}, tmp_path / name)
    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    assert set(SafetensorsReader(tmp_path).tensors()) == {"a.safetensors", "b.safetensors"}


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(WeightError, match=r"b\.safetensors, tensor 'w', at byte \d+: is in a\.safetensors too"):
        SafetensorsReader(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match=r"only as pickle \(pytorch_model\.bin\)"):
        weight_files(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no \.safetensors file"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../../etc/x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", "..", "\x00.safetensors"]
)
def test_an_index_reaches_only_files_beside_it(
    sharded: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, shard: str
) -> None:
    path, index = copy_of(sharded, tmp_path)
    index["weight_map"]["model.norm.weight"] = shard
    (path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(WeightError, match=r"index\.json, tensor 'model\.norm\.weight'"):
        weight_files(path)


def test_a_missing_shard(sharded: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, index = copy_of(sharded, tmp_path)
    (path / index["weight_map"]["lm_head.weight"]).unlink()
    with pytest.raises(WeightError, match="which is not there: fetch the model again"):
        weight_files(path)


def test_an_index_that_is_wrong_about_a_tensor(sharded: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, index = copy_of(sharded, tmp_path)
    index["weight_map"]["model.extra"] = index["weight_map"]["lm_head.weight"]
    (path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(WeightError, match=r"tensor 'model\.extra': is not in model-"):
        SafetensorsReader(path)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {"a": 1}}', "{}", '{"weight_map": {"\\ud800": "a"}}'])
def test_malformed_indexes(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(WeightError, match=r"index\.json"):
        weight_files(tmp_path)


# --- malformed files -----------------------------------------------------------------------------------------


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


MALFORMED = {
    "not JSON": (b"{nonsense", b"", "not valid JSON"),
    "not an object": (b"[1, 2]", b"", "not a JSON object"),
    "deep nesting": (b"[" * 200_000, b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", b"", "not valid JSON"),
    "name twice": (b'{"w": 1, "w": 2}', b"", "tensor 'w', at byte 8: is named twice"),
    "field twice": (b'{"w": {"dtype": "F32", "dtype": "F16"}}', b"", "'dtype', at byte 8: is named twice"),
    "lone surrogate": (
        b'{"\\ud800": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
        "not that of safetensors",
    ),
    "no offsets": ({"w": {"dtype": "F32", "shape": [2]}}, b"", "data_offsets"),
    "negative size": ({"w": entry(shape=[-2])}, bytes(8), "not that of safetensors"),
    "size as text": ({"w": entry(shape=["2"])}, bytes(8), "not that of safetensors"),
    "size as bool": ({"w": entry(shape=[True, 2])}, bytes(8), "not that of safetensors"),
    "100 dimensions": ({"w": entry(shape=[1] * 99 + [2])}, bytes(8), "not that of safetensors"),
    "three offsets": ({"w": entry(offsets=[0, 4, 8])}, bytes(8), "not that of safetensors"),
    "offsets backwards": ({"w": entry(offsets=[8, 0])}, bytes(8), "takes 8 bytes, but the header gives it -8"),
    "wrong size": ({"w": entry(shape=[3])}, bytes(8), r"F32 \[3\] takes 12 bytes, but the header gives it 8"),
    "huge size": ({"w": entry(shape=[2**62, 2**62])}, bytes(8), "takes 8507"),
    "unknown type": ({"w": entry("F31")}, bytes(8), "unknown type 'F31'"),
    "out of the file": ({"w": entry()}, bytes(7), "needs 8 bytes, but the file ends at"),
    "far out of the file": ({"w": entry(shape=[2**60], offsets=[0, 2**62])}, bytes(8), "cut short"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "tensor 'b'.*neither overlap nor leave gaps"),
    "gap": ({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20), "tensor 'b'.*neither overlap nor leave gaps"),
    "trailing bytes": ({"w": entry()}, bytes(11), "3 bytes belong to no tensor"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files(tmp_path: Path, case: str) -> None:
    header, data, message = MALFORMED[case]
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(WeightError, match=message) as raised:
        SafetensorsReader(tmp_path)
    assert raised.value.file == str(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x01\x02", b"\xff" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 9) + b"{}"]
)
def test_files_shorter_than_their_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightError, match=r"model\.safetensors"):
        SafetensorsReader(tmp_path)


def test_types_that_nothing_computes_with(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"w": entry("F8_E4M3", [8])}, bytes(8))
    with pytest.raises(UnsupportedModel, match=r"'w' is stored as F8_E4M3; core reads F32, F16, BF16"):
        SafetensorsReader(tmp_path)


@given(
    flips=st.lists(st.tuples(st.integers(0, 2**12), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 2**12),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files(tmp_path: Path, flips: list[tuple[int, int]], cut: int | None) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a.weight": torch.ones(4, 2), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.ones(0, 2)}
    save_file(tensors, path, metadata={"format": "pt"})
    content = bytearray(path.read_bytes())
    for position, value in flips:
        content[position % min(len(content), 260)] = value
    if cut is not None:
        del content[cut % len(content) :]
    path.write_bytes(content)
    try:
        with closing(SafetensorsReader(tmp_path)) as reader:
            reader.digest()
            for name in reader.tensors():
                reader.read(name)
    except CoreError as error:
        assert str(path) in str(error)
