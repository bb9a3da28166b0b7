"""GGUF: header, names, row order, reading by rows, and files that lie."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.errors import CoreError, UnsupportedModel, WeightError
from core.types import DType
from core.weights.base import MappedFile
from core.weights.gguf import GGUFReader, read_gguf_metadata
from core.weights.gguf.header import MAX_ITEMS, read_header
from core.weights.gguf.quants import QUANT_TYPES
from core.weights.mapping import hf_name, interleaved_rows, llama3_factors
from core.weights.source import default_model

WriteGGUF = Callable[..., Path]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to Q and K rows."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


# --- metadata ------------------------------------------------------------------------------------------------


def test_every_metadata_type_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "Ġhé")
    writer.add_array("strings", ["a", "", "ß"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert dict(read_gguf_metadata(tmp_path / "all.gguf")) == {
        "general.architecture": "llama", "u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 4_000_000_000,
        "i32": -2_000_000_000, "u64": 2**63, "i64": -(2**62), "f32": 0.5, "f64": 0.1, "yes": True, "text": "Ġhé",
        "strings": ["a", "", "ß"], "ints": [1, -2, 3], "nested": [[1, 2], [3]],
    }  # fmt: skip


@pytest.fixture(scope="module")
def demo() -> gguf.GGUFReader:
    """The demo model as the `gguf` package reads it, which takes seconds."""
    return gguf.GGUFReader(default_model())


@pytest.mark.slow
def test_demo_metadata_is_what_the_gguf_package_reads(demo: gguf.GGUFReader) -> None:
    path = Path(default_model())
    want = {key: field.contents() for key, field in demo.fields.items() if not key.startswith("GGUF.")}
    assert dict(read_gguf_metadata(path)) == want
    short = read_header(MappedFile(path), string_arrays=False).metadata
    left_out = {key for key, value in want.items() if isinstance(value, list) and isinstance(value[0], str)}
    assert left_out >= {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}
    assert dict(short) == {key: value for key, value in want.items() if key not in left_out}


# --- tensors -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_tensors_are_what_the_gguf_package_dequantises(demo: gguf.GGUFReader) -> None:
    theirs = {hf_name(tensor.name): tensor for tensor in demo.tensors}
    with closing(GGUFReader(Path(default_model()))) as reader:
        assert set(reader.tensors()) == set(theirs)
        for name in [*list(reader.tensors())[::23], "model.layers.29.self_attn.k_proj.weight"]:
            tensor = theirs[name]
            want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if ".q_proj." in name or ".k_proj." in name:
                want = want[interleaved_rows(9 if ".q_proj." in name else 3, len(want))]
            assert np.array_equal(reader.read(name), want), name
            assert reader.stored(name).nbytes == tensor.n_bytes
            reader.release(name)
            assert np.array_equal(reader.read(name), want), name


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_interleaved_rows_undo_the_converter(heads: int) -> None:
    weight = np.arange(heads * 16 * 5).reshape(heads * 16, 5)
    assert np.array_equal(interleave(weight, heads)[interleaved_rows(heads, heads * 16)], weight)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_q_and_k_rows_come_in_hugging_face_order(write_gguf: WriteGGUF, arch: str) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(32, 32)).astype(np.float32), rng.normal(size=(16, 32)).astype(np.float32)
    q_bias = rng.normal(size=32).astype(np.float32)
    permute = interleave if arch == "llama" else lambda weight, _: weight
    path = write_gguf(
        {
            "token_embd.weight": np.zeros((96, 32), np.float32),
            "blk.1.attn_q.weight": permute(q, 4),
            "blk.1.attn_q.bias": permute(q_bias, 4),
            "blk.1.attn_k.weight": permute(k, 2),
        },
        arch=arch,
    )
    with closing(GGUFReader(path)) as reader:
        assert np.array_equal(reader.read("model.layers.1.self_attn.q_proj.weight"), q)
        assert np.array_equal(reader.read("model.layers.1.self_attn.q_proj.bias"), q_bias)
        assert np.array_equal(reader.read("model.layers.1.self_attn.k_proj.weight"), k)
        assert np.array_equal(reader.read("model.layers.1.self_attn.k_proj.weight", slice(8, 16)), k[8:16])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *QUANT_TYPES])
@pytest.mark.parametrize("tensor", ["blk.0.ffn_up.weight", "blk.0.attn_q.weight"])
def test_rows_of_every_type(write_gguf: WriteGGUF, kind: str, tensor: str) -> None:
    rng = np.random.default_rng(0)
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    values = rng.normal(size=(16, 256)).astype(np.float32)
    if kind in QUANT_TYPES:
        stored = rng.integers(0, 120, (16, 256 // block_weights * block_bytes), dtype=np.uint8)
        data: Any = (stored, kind)
    elif kind == "BF16":
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        data = (stored.view(np.uint8), kind)
    else:
        data = stored = values.astype({"F32": np.float32, "F16": np.float16}[kind])
    path = write_gguf({"token_embd.weight": np.zeros((96, 32), np.float32), tensor: data})
    name = hf_name(tensor)
    assert name is not None
    with closing(GGUFReader(path)) as reader:
        meta = reader.tensors()[name]
        plain = {"F32": DType.FLOAT32, "F16": DType.FLOAT16, "BF16": DType.BFLOAT16}
        assert (meta.shape, meta.dtype) == ((16, 256), plain.get(kind, DType.FLOAT32))
        assert (meta.quant, meta.nbytes) == (kind if kind in QUANT_TYPES else None, stored.nbytes)
        whole = reader.read(name)
        assert whole.shape == (16, 256)
        if kind not in QUANT_TYPES and "ffn" in tensor:
            assert np.array_equal(whole, stored)
        for rows in (slice(0, 4), slice(4, 12), slice(15, 16)):
            assert np.array_equal(reader.read(name, rows), whole[rows])


def test_an_array_outlives_its_reader(write_gguf: WriteGGUF) -> None:
    reader = GGUFReader(write_gguf())
    array = reader.read("model.embed_tokens.weight")
    reader.close()
    assert array.sum() == 96 * 32


def test_a_tensor_that_is_not_there(write_gguf: WriteGGUF) -> None:
    reader = GGUFReader(write_gguf())
    with pytest.raises(WeightError, match=r"tiny\.gguf, tensor 'lm_head\.weight': is not in this file"):
        reader.read("lm_head.weight")


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("output.weight", "lm_head.weight"),
        ("blk.12.ffn_norm.weight", "model.layers.12.post_attention_layernorm.weight"),
        ("blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
        ("blk.0.attn_v.bias", "model.layers.0.self_attn.v_proj.bias"),
        ("blk.0.ffn_gate_exps.weight", None),
        ("output.scale", None),
        ("blk..attn_q.weight", None),
    ],
)
def test_names(name: str, want: str | None) -> None:
    assert hf_name(name) == want


# --- the header as config.json -------------------------------------------------------------------------------


def config_of(path: Path) -> dict[str, Any]:
    with closing(GGUFReader(path)) as reader:
        return reader.hf_config()


def test_config_words(write_gguf: WriteGGUF) -> None:
    config = config_of(write_gguf(metadata={"tokenizer.ggml.bos_token_id": 1, "llama.rope.freq_base": 5e5}))
    assert config == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "rope_scaling": None,
        "sliding_window": None, "vocab_size": 96, "tie_word_embeddings": True, "attention_bias": False,
        "mlp_bias": False, "bos_token_id": 1,
    }  # fmt: skip


def test_what_the_tensors_tell(write_gguf: WriteGGUF) -> None:
    tensors = {
        "token_embd.weight": np.zeros((96, 32), np.float32),
        "output.weight": np.zeros((96, 32), np.float32),
        "blk.0.attn_q.bias": np.zeros(32, np.float32),
    }
    config = config_of(write_gguf(tensors, arch="qwen2"))
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["attention_bias"] is True
    assert config["tie_word_embeddings"] is False


def test_a_llama_with_a_window_is_a_mistral(write_gguf: WriteGGUF) -> None:
    config = config_of(write_gguf(metadata={"llama.attention.sliding_window": 16}))
    assert (config["architectures"], config["sliding_window"]) == (["MistralForCausalLM"], 16)


def test_linear_and_yarn_scaling(write_gguf: WriteGGUF) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert config_of(write_gguf(metadata=linear))["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = linear | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 32}
    want = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert config_of(write_gguf(metadata=yarn))["rope_scaling"] == want
    with pytest.raises(UnsupportedModel, match="longrope"):
        config_of(write_gguf(metadata=linear | {"llama.rope.scaling.type": "longrope"}))


def test_llama3_scaling_comes_back_out_of_its_divisors(write_gguf: WriteGGUF) -> None:
    tensors = {
        "token_embd.weight": np.zeros((96, 32), np.float32),
        "rope_freqs.weight": llama3_factors(5e5, 64, 32.0),
    }
    metadata = {"llama.rope.freq_base": 5e5, "llama.attention.key_length": 64, "llama.attention.value_length": 64}
    assert config_of(write_gguf(tensors, metadata))["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    tensors["rope_freqs.weight"] = np.linspace(1, 8, 32, dtype=np.float32)
    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        config_of(write_gguf(tensors, metadata))


def test_llama3_divisors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig  # slow to import
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    parameters = scaling | {"original_max_position_embeddings": 8192}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=1, max_position_embeddings=131072, rope_parameters=parameters
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / llama3_factors(5e5, 64, 8.0), scaled.numpy(), rtol=1e-5)


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": None}, "'llama.block_count' is missing"),
        ({"llama.block_count": "two"}, "'llama.block_count' is 'two' where core expects one int"),
        ({"llama.attention.head_count_kv": [2, 2]}, "is a list where core expects one int"),
        ({"llama.attention.head_count_kv": 3}, "4 attention heads cannot share 3"),
        ({"llama.attention.head_count": 0}, "0 attention heads"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "is nan"),
        ({"llama.block_count": 4_000_000_000}, "out of range"),
        ({"general.alignment": 12}, "general.alignment"),
    ],
)
def test_wrong_metadata(write_gguf: WriteGGUF, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        config_of(write_gguf(metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "arch", "message"),
    [
        ({}, "gpt2", "architecture 'gpt2'; core reads GGUF files of llama, qwen2, qwen3"),
        ({"llama.expert_count": 8}, "llama", "mixture of experts"),
        ({"split.count": 3}, "llama", "one of 3 parts"),
        ({"llama.rope.dimension_count": 4}, "llama", "a part of each head"),
    ],
)
def test_unsupported_models(write_gguf: WriteGGUF, metadata: dict[str, Any], arch: str, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        config_of(write_gguf(metadata=metadata, arch=arch))


def test_unsupported_tensors(write_gguf: WriteGGUF) -> None:
    embedding = {"token_embd.weight": np.zeros((96, 32), np.float32)}
    with pytest.raises(UnsupportedModel, match=r"'blk.0.ffn_up.weight' has the ggml type Q2_K; core reads F32.*Q6_K"):
        GGUFReader(write_gguf(embedding | {"blk.0.ffn_up.weight": (np.zeros((2, 84), np.uint8), "Q2_K")}))
    with pytest.raises(UnsupportedModel, match=r"'blk.0.ssm_a.weight' is none of a llama model's"):
        GGUFReader(write_gguf(embedding | {"blk.0.ssm_a.weight": np.zeros(32, np.float32)}))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blk.0.attn_q.weight", (12, 32), r"\[12, 32\] does not divide into 4 heads of an even size"),
        ("blk.0.ffn_up.weight", (2, 4, 32), "has 3 dimensions"),
        ("blk.00.ffn_up.weight", (4, 32), "stands for model.layers.0.mlp.up_proj.weight, as another does"),
    ],
)
def test_tensors_that_do_not_fit(write_gguf: WriteGGUF, name: str, shape: tuple[int, ...], message: str) -> None:
    tensors = {"blk.0.ffn_up.weight": np.zeros((4, 32), np.float32), name: np.zeros(shape, np.float32)}
    with pytest.raises(WeightError, match=message):
        GGUFReader(write_gguf(tensors))


def preamble(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def array(key: bytes, kind: int, count: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, count) + data


PAD = bytes(256)

MALFORMED = {
    "empty": (b"", "the file is empty"),
    "short": (b"GGUF\x03", "the preamble needs 24 bytes, but the file ends at 5"),
    "magic": (b"GGML" + preamble()[4:], "does not begin with 'GGUF'"),
    "more keys than bytes": (preamble(keys=2**60), "the metadata, 1152921504606846976 items,"),
    "more tensors than bytes": (preamble(tensors=2**61) + PAD, "the tensor list"),
    "key of 2**63 bytes": (preamble(keys=1) + struct.pack("<Q", 2**63) + PAD, "a metadata key needs"),
    "array of 2**62 strings": (preamble(keys=1) + array(b"k", 8, 2**62, PAD), "the array 'k'"),
    "array of 2**62 floats": (preamble(keys=1) + array(b"k", 6, 2**62, PAD), "the array 'k'"),
    "string over the end": (
        preamble(keys=1) + array(b"k", 8, 2, text(b"a") + struct.pack("<Q", 99)),
        "number 1 runs over",
    ),
    "nesting": (preamble(keys=1) + text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + PAD, "nested"),
    "value type": (preamble(keys=1) + text(b"k") + struct.pack("<I", 13) + PAD, "has the type 13"),
    "key twice": (preamble(keys=2) + (text(b"k") + struct.pack("<II", 4, 1)) * 2, "'k' appears twice"),
    "not UTF-8": (preamble(keys=1) + text(b"k") + struct.pack("<I", 8) + text(b"\xff\xfe") + PAD, "not UTF-8"),
    "dimensions": (preamble(tensors=1) + tensor(b"t", [1] * 5, 0, 0) + PAD, "tensor 't', at byte 24: has 5 dimensions"),
    "empty tensor": (preamble(tensors=1) + tensor(b"t", [4, 0], 0, 0) + PAD, r"is empty: \[0, 4\]"),
    "huge tensor": (preamble(tensors=1) + tensor(b"t", [2**62, 2**62], 0, 0) + PAD, "tensor 't', at byte 96: needs"),
    "outside": (preamble(tensors=1) + tensor(b"t", [4], 0, 2**40) + PAD, "cut short"),
    "unaligned": (preamble(tensors=1) + tensor(b"t", [4], 0, 4) + PAD, "not aligned to 32"),
    "overlap": (preamble(tensors=2) + tensor(b"a", [16], 0, 0) + tensor(b"b", [4], 0, 32) + PAD, "'b'.*overlaps"),
    "tensor twice": (preamble(tensors=2) + tensor(b"a", [4], 0, 0) + tensor(b"a", [4], 0, 32) + PAD, "appears twice"),
    "quantised vector": (preamble(tensors=1) + tensor(b"t", [32], 2, 0) + PAD, "not a matrix"),
    "broken row": (preamble(tensors=1) + tensor(b"t", [33, 2], 2, 0) + PAD, "blocks of 32"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files(tmp_path: Path, case: str) -> None:
    content, message = MALFORMED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightError, match=message) as raised:
        read_gguf_metadata(path)
    assert raised.value.file == str(path)


@pytest.mark.parametrize(("version", "message"), [(1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")])
def test_other_versions(tmp_path: Path, version: int, message: str) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(preamble(version=version))
    with pytest.raises(UnsupportedModel, match=message):
        read_gguf_metadata(path)


def test_a_directory_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(WeightError, match="cannot be read"):
            read_gguf_metadata(path)


def test_a_flood_of_items_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    path = tmp_path / "flood.gguf"
    with path.open("wb") as file:
        file.write(preamble(keys=1) + array(b"k", 0, MAX_ITEMS + 1, b""))
        file.truncate(MAX_ITEMS + 1000)  # sparse: the bytes are there
    tracemalloc.start()
    with pytest.raises(WeightError, match=f"may have {MAX_ITEMS} in all"):
        read_gguf_metadata(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# --- fuzzing -------------------------------------------------------------------------------------------------


@pytest.fixture
def seed_file(write_gguf: WriteGGUF) -> bytes:
    metadata = {
        "tokenizer.ggml.tokens": ["<s>", "a", "b"] * 4,
        "tokenizer.ggml.token_type": [1, 2, 3] * 4,
        "tokenizer.ggml.eos_token_id": 2,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 2.0,
    }
    tensors = {
        "token_embd.weight": np.ones((8, 32), np.float32),
        "blk.0.attn_q.weight": (np.ones((8, 18), np.uint8), "Q4_0"),
        "rope_freqs.weight": llama3_factors(1e4, 8, 8.0),
    }
    return write_gguf(tensors, metadata).read_bytes()


def use_everything(path: Path) -> None:
    """All that core does with a file: only its own errors may come out."""
    try:
        read_gguf_metadata(path)
        with closing(GGUFReader(path)) as reader:
            reader.hf_config()
            reader.eos_token_ids()
            reader.digest()
            for name in reader.tensors():
                reader.read(name)
    except CoreError as error:
        assert str(path) in str(error)


_INTERESTING = st.sampled_from([0, 1, 8, 9, 31, 127, 255])


@given(
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.one_of(st.integers(0, 255), _INTERESTING)), max_size=6),
    word=st.none() | st.tuples(st.integers(0, 2**16), st.sampled_from([2**63, 2**32 - 1, 2**31, 2**20, 2**64 - 1])),
    cut=st.none() | st.integers(0, 2**16),
)
@example(flips=[], word=None, cut=None)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files(
    seed_file: bytes, tmp_path: Path, flips: list[tuple[int, int]], word: tuple[int, int] | None, cut: int | None
) -> None:
    content = bytearray(seed_file)
    for position, value in flips:
        content[position % len(content)] = value
    if word is not None:
        start = word[0] % (len(content) - 8)
        content[start : start + 8] = struct.pack("<Q", word[1])
    if cut is not None:
        del content[cut % len(content) :]
    path = tmp_path / "mutated.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        use_everything(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_truncations(seed_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(0, len(seed_file) - 64, 7):
        path.write_bytes(seed_file[:length])
        with pytest.raises(WeightError):
            GGUFReader(path)
