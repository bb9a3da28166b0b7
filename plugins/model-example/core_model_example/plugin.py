"""The hooks. Every start-up of core imports this module; the model's own, which needs torch, only when it is served."""

from __future__ import annotations

from collections.abc import Mapping

from core.hookspecs import hookimpl
from core.platform import PluginInfo


@hookimpl
def plugin_info() -> PluginInfo:
    """Written for version 1.0 of the contract."""
    return PluginInfo(name="smollm3", vendor="core", version="0.1.0", api=(1, 0))


@hookimpl
def models() -> Mapping[str, str]:
    """The name in `config.json`'s `architectures`, and what builds such a model."""
    return {"SmolLM3ForCausalLM": "core_model_example.smollm3:build"}
