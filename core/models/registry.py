"""Architectures by the name in `config.json`, imported when one is asked for: the core's own, and those of plugins."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

from core.config import nearest
from core.errors import UnsupportedModel
from core.extensions import Extension
from core.layers.base import Builder, StepContext
from core.models.blocks import DecoderModel, DecoderSettings
from core.pooling import ENCODERS, PoolerConfig
from core.program import Value

#: Records a model's forward: the logits, float32 [num_seqs, vocab].
Model = Callable[[StepContext], Value]
#: Declares a model's weights on the builder and gives the model.
BuildModel = Callable[[Builder, Mapping[str, Any]], Model]


class HiddenModel(Protocol):
    """A model whose states can be pooled."""

    def hidden(self, ctx: StepContext) -> Value:
        """The last layer's states, [num_tokens, hidden]."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A model with a head over a pooled state."""

    def scores(self, pooled: Value) -> Value:
        """[num_seqs, hidden] -> float32 [num_seqs, labels]."""
        ...


ReadSettings = Callable[[Mapping[str, Any]], DecoderSettings]

BuildHidden = Callable[[Builder, Mapping[str, Any]], HiddenModel]

#: Modules whose `settings` reads a checkpoint's `config.json` into DecoderSettings.
_ARCHITECTURES = {
    "LlamaForCausalLM": "core.models.llama",
    "MistralForCausalLM": "core.models.mistral",
    "Qwen2ForCausalLM": "core.models.qwen2",
    "Qwen3ForCausalLM": "core.models.qwen3",
}
#: The same without their heads, as some embedding models are saved.
_HEADLESS = {name.replace("ForCausalLM", "Model"): module for name, module in _ARCHITECTURES.items()}


def architectures(added: Mapping[str, Extension]) -> list[str]:
    """The names that generate, with those `added` by plugins."""
    return sorted({*_ARCHITECTURES, *added})


def settings_reader(architecture: str) -> ReadSettings:
    """What reads `config.json` for one of the core's own architectures."""
    reader: ReadSettings = importlib.import_module(_ARCHITECTURES[architecture]).settings
    return reader


def model_builder(architecture: str, added: Mapping[str, Extension]) -> BuildModel:
    """How to make a model of `architecture`. Raises UnsupportedModel, and PluginLoadError for a plugin that takes a name
    of the core's."""
    for name in _ARCHITECTURES.keys() & added.keys():
        raise added[name].error("has the name of one of the core's own")
    if architecture in _ARCHITECTURES:
        read = settings_reader(architecture)
        return lambda builder, hf_config: DecoderModel(builder, read(hf_config))
    if architecture in added:
        build: BuildModel = added[architecture].load()
        return build
    raise _unknown(architecture, architectures(added))


def _unknown(architecture: str, known: list[str]) -> UnsupportedModel:
    hint = nearest(architecture, known)
    return UnsupportedModel(f"architecture {architecture!r} is not implemented{hint}; known: {', '.join(known)}")


def pooled_model(architecture: str, added: Mapping[str, Extension], pooler: PoolerConfig) -> BuildHidden:
    """The same for a model whose states are pooled. Raises UnsupportedModel, PluginLoadError."""
    if architecture in ENCODERS:
        from core.models.bert import Encoder  # loaded where one is served

        return lambda builder, hf_config: Encoder(builder, hf_config, pooler)
    module = {**_ARCHITECTURES, **_HEADLESS}.get(architecture)
    if module is not None:
        read: ReadSettings = importlib.import_module(module).settings
        return lambda builder, hf_config: DecoderModel(builder, replace(read(hf_config), has_head=False))
    if architecture not in added:
        raise _unknown(architecture, sorted({*architectures(added), *_HEADLESS, *ENCODERS}))
    build = model_builder(architecture, added)

    def checked(builder: Builder, hf_config: Mapping[str, Any]) -> HiddenModel:
        model = build(builder, hf_config)
        if not hasattr(model, "hidden"):
            raise UnsupportedModel(
                f"architecture {architecture!r} of a plugin has no method hidden, which pooling needs"
            )
        return cast("HiddenModel", model)

    return checked
