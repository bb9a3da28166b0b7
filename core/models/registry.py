"""Architectures by the name in `config.json`, imported when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from core.config import nearest
from core.errors import UnsupportedModel
from core.models.blocks import DecoderSettings

ReadSettings = Callable[[Mapping[str, Any]], DecoderSettings]

_ARCHITECTURES = {
    "LlamaForCausalLM": "core.models.llama",
    "MistralForCausalLM": "core.models.mistral",
    "Qwen2ForCausalLM": "core.models.qwen2",
    "Qwen3ForCausalLM": "core.models.qwen3",
}


def architectures() -> list[str]:
    """The names that can be served."""
    return sorted(_ARCHITECTURES)


def settings_reader(architecture: str) -> ReadSettings:
    """The function that reads a checkpoint's settings. Raises UnsupportedModel."""
    module = _ARCHITECTURES.get(architecture)
    if module is None:
        hint = nearest(architecture, architectures())
        raise UnsupportedModel(
            f"architecture {architecture!r} is not implemented{hint}; known: {', '.join(architectures())}"
        )
    reader: ReadSettings = importlib.import_module(module).settings
    return reader
