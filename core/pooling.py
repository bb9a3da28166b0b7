"""What a model pools: whether it gives vectors or scores instead of tokens, and how. Read once, before it is loaded.

A sentence-transformers checkpoint says so in `modules.json` and in the `config.json` of its pooling module
(https://sbert.net/docs/sentence_transformer/usage/custom_models.html); others by their architecture's name. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.errors import ConfigError, ModelError, UnsupportedModel
from core.types import PoolingActivation

Pooling = Literal["mean", "last", "cls"]
Runner = Literal["auto", "generate", "pooling"]
Convert = Literal["auto", "none", "embed"]

#: Architectures that attend in both directions, so that a prompt is computed whole, and that give no tokens.
ENCODERS = tuple(
    f"{family}{head}" for family in ("Bert", "Roberta", "XLMRoberta") for head in ("Model", "ForSequenceClassification")
)

_CLASSIFIER = "ForSequenceClassification"
_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


class PoolerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How one vector is made of a prompt's hidden states.

    embed: the vector is the embedding, `activation` normalise or none. classify: a head turns it into `size` scores.
    `whole`: a prompt has to be computed in one step, and none of it can be taken from the prefix cache.
    """

    task: Literal["embed", "classify"]
    pooling: Pooling
    activation: PoolingActivation
    size: int  # elements of a result
    whole: bool
    dimensions: tuple[int, ...] | None = ()  # an embedding may be cut to these; None: to any
    labels: tuple[str, ...] = ()

    @property
    def is_cross_encoder(self) -> bool:
        """Whether it scores a pair of texts."""
        return self.task == "classify" and self.size == 1


class _Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`--pooler-config`, with vLLM's names."""

    pooling_type: Literal["MEAN", "LAST", "CLS"] | None = None
    normalize: bool | None = None


def pooler_of(
    architecture: str,
    hf_config: Mapping[str, Any],
    directory: Path,
    *,
    runner: Runner,
    convert: Convert,
    given: str | None,
    generates: bool = False,
) -> PoolerConfig | None:
    """What the model is to pool, or None where it generates. `generates`: a plugin's architecture, of any name.

    Raises ConfigError, ModelError, UnsupportedModel.
    """
    modules = _modules(directory)
    wants = _parse(given)
    if not _pools(architecture, runner, convert, generates=generates, has_modules=bool(modules)):
        if given is not None:
            raise ConfigError("--pooler-config", "this model generates; set --runner pooling with it")
        return None
    if architecture.endswith(_CLASSIFIER):
        return _classifier(hf_config)
    stored, normalize = _stored(directory, modules)
    default: Pooling = "cls" if architecture in ENCODERS else "last"
    named: dict[str, Pooling] = {"MEAN": "mean", "LAST": "last", "CLS": "cls"}
    pooling = named[wants.pooling_type] if wants.pooling_type else stored or default
    normalize = wants.normalize if wants.normalize is not None else normalize
    return PoolerConfig(
        task="embed",
        pooling=pooling,
        activation="normalize" if normalize else "none",
        size=int(hf_config["hidden_size"]),
        whole=architecture in ENCODERS or pooling != "last",
        dimensions=_dimensions(hf_config),
    )


def _parse(given: str | None) -> _Given:
    if given is None:
        return _Given()
    try:
        return msgspec.json.decode(given, type=_Given)
    except msgspec.MsgspecError as error:
        raise ConfigError("--pooler-config", f'{error}; write it like {{"pooling_type": "MEAN"}}') from error


def _pools(architecture: str, runner: Runner, convert: Convert, *, generates: bool, has_modules: bool) -> bool:
    generates = generates or architecture.endswith(("ForCausalLM", "LMHeadModel"))
    named = not generates and architecture.endswith(("Model", _CLASSIFIER))
    if runner == "generate" or (runner == "auto" and not named and convert != "embed" and not has_modules):
        if named:
            raise ConfigError("--runner generate", f"{architecture} has no head that gives tokens; leave it to auto")
        if convert == "embed":
            raise ConfigError("--convert embed", "a converted model pools; drop --runner generate")
        return False
    if generates and convert == "none":
        raise ConfigError("--convert none", f"{architecture} gives tokens; --convert embed makes it give vectors")
    return True


# --- embeddings ----------------------------------------------------------------------------------------------


def _modules(directory: Path) -> list[Mapping[str, Any]]:
    """A sentence-transformers checkpoint's modules; none of another."""
    file = directory / "modules.json"
    found = _read(file) if file.is_file() else []
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise ModelError(f"{file}: is not a list of modules")
    return found


def _stored(directory: Path, modules: list[Mapping[str, Any]]) -> tuple[Pooling | None, bool]:
    """The pooling that the modules tell, if they do, and whether the vectors are normalised.

    Without modules they are, as by vLLM. Raises UnsupportedModel for a module that would be left out.
    """
    if not modules:
        return None, True
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UnsupportedModel(f"{directory / 'modules.json'}: module {kind!r} is not implemented")
    pooling: Pooling | None = None
    if "Pooling" in kinds:
        file = directory / str(modules[kinds.index("Pooling")].get("path", "")) / "config.json"
        modes = [name for name, used in _read(file).items() if name.startswith("pooling_mode_") and used is True]
        if len(modes) != 1 or modes[0] not in _MODES:
            raise UnsupportedModel(f"{file}: pooling by {', '.join(modes) or 'nothing'}; known: {', '.join(_MODES)}")
        pooling = _MODES[modes[0]]
    return pooling, "Normalize" in kinds


def _dimensions(hf_config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The lengths that the model's vectors may be cut to (Matryoshka; Kusupati et al. 2022), with vLLM's names."""
    if given := hf_config.get("matryoshka_dimensions"):
        return tuple(int(size) for size in given)
    return None if hf_config.get("is_matryoshka") else ()


def longest_prompt(architecture: str, hf_config: Mapping[str, Any]) -> int:
    """Positions that the model knows."""
    positions = int(hf_config.get("max_position_embeddings") or 2048)
    return positions - position_offset(hf_config) if architecture in ENCODERS else positions


def usual_prompt(directory: Path) -> int | None:
    """The length that a sentence-transformers checkpoint cuts its prompts to, which it was trained on."""
    file = directory / "sentence_bert_config.json"
    length = _read(file).get("max_seq_length") if file.is_file() else None
    return int(length) if length else None


def position_offset(hf_config: Mapping[str, Any]) -> int:
    """Where positions begin: RoBERTa's behind its padding token's id, as in fairseq."""
    roberta = hf_config.get("model_type") in ("roberta", "xlm-roberta")
    return int(hf_config.get("pad_token_id") or 0) + 1 if roberta else 0


# --- classifiers ---------------------------------------------------------------------------------------------


def _classifier(hf_config: Mapping[str, Any]) -> PoolerConfig:
    names = hf_config.get("id2label") or {}
    size = len(names) or int(hf_config.get("num_labels") or 2)
    labels = tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(size))
    activation: PoolingActivation = _score_activation(hf_config) if size == 1 else "softmax"
    return PoolerConfig(task="classify", pooling="cls", activation=activation, size=size, whole=True, labels=labels)


def _score_activation(hf_config: Mapping[str, Any]) -> PoolingActivation:
    """What sentence-transformers' CrossEncoder does to the one score: sigmoid unless the checkpoint says otherwise."""
    named = (hf_config.get("sentence_transformers") or {}).get("activation_fn")
    named = str(named or hf_config.get("sbert_ce_default_activation_function") or "Sigmoid").rpartition(".")[2]
    known: dict[str, PoolingActivation] = {"Sigmoid": "sigmoid", "Identity": "none"}
    if named not in known:
        raise UnsupportedModel(f"activation {named!r} of a cross-encoder is not implemented; known: {', '.join(known)}")
    return known[named]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: is not valid JSON: {error}") from error
