"""Installs the package for these tests where pip has not, and makes tiny checkpoints to serve."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]

try:
    INSTALLED = bool(importlib.metadata.distribution("core-openvino"))
except importlib.metadata.PackageNotFoundError:
    INSTALLED = False
    sys.path.insert(0, str(PROJECT))


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an installation leaves: metadata with the entry point, for this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        # As the plugin itself would set it, had these tests not imported torch before it.
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        if not INSTALLED:
            site = _site(tmp_path_factory.mktemp("site"))
            patch.syspath_prepend(str(site))
            patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(PROJECT)]))
        yield


def _site(site: Path) -> Path:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


#: These tests import OpenVINO themselves; the plugin does this before it does (`plugin.create_platform`).
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


# --- tiny checkpoints ----------------------------------------------------------------------------------------

VOCAB = 384

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Wide enough that the largest logit is never a matter of the last bits.
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

#: What differs from a llama: a sliding window, a bias, norms of queries and keys.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 24},
    "Qwen2": {},
    "Qwen3": {"head_dim": 32},
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes, once a session, a small random checkpoint of a family, with a tokenizer of one token a byte."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = _checkpoint(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


def _checkpoint(family: str, directory: Path) -> Path:
    """Biases and norms are random too: zeros and ones would hide errors."""
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **FAMILIES[family]})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(directory)
    _byte_tokenizer(directory)
    return directory


def _byte_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{symbol: 3 + i for i, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
