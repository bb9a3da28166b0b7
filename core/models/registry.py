"""Architectures by the name in `config.json`, imported when one is asked for: the core's own, and those of plugins."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from core.config import nearest
from core.errors import UnsupportedModel
from core.extensions import Extension
from core.layers.base import Builder, StepContext
from core.models.blocks import DecoderModel, DecoderSettings
from core.program import Value

#: Records a model's forward: the logits, float32 [num_seqs, vocab].
Model = Callable[[StepContext], Value]
#: Declares a model's weights on the builder and gives the model.
BuildModel = Callable[[Builder, Mapping[str, Any]], Model]

ReadSettings = Callable[[Mapping[str, Any]], DecoderSettings]

#: Modules whose `settings` reads a checkpoint's `config.json` into DecoderSettings.
_ARCHITECTURES = {
    "LlamaForCausalLM": "core.models.llama",
    "MistralForCausalLM": "core.models.mistral",
    "Qwen2ForCausalLM": "core.models.qwen2",
    "Qwen3ForCausalLM": "core.models.qwen3",
}


def architectures(added: Mapping[str, Extension]) -> list[str]:
    """The names that can be served, with those `added` by plugins."""
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
    known = architectures(added)
    hint = nearest(architecture, known)
    raise UnsupportedModel(f"architecture {architecture!r} is not implemented{hint}; known: {', '.join(known)}")
