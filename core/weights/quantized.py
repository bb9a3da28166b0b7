"""Checkpoints whose tensors are stored quantised, as `quantization_config` in `config.json` says.

The schemes come from plugins (`core.hookspecs.quantization_schemes`); they decode at load. GGUF files need none: their
block types are part of the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.config import Config, nearest
from core.errors import UnsupportedModel
from core.extensions import Extension
from core.weights.base import WeightReader
from core.weights.source import ModelSource, open_reader


def quantization_scheme(hf_config: Mapping[str, Any], schemes: Mapping[str, Extension]) -> Extension | None:
    """The scheme that reads a checkpoint, None for one that is not quantised.

    Raises UnsupportedModel where no plugin brings it.
    """
    settings = hf_config.get("quantization_config")
    if settings is None:
        return None
    method = str(settings.get("quant_method", "")) if isinstance(settings, Mapping) else ""
    if method not in schemes:
        known = f"; installed: {', '.join(sorted(schemes))}" if schemes else "; no plugin that adds one is installed"
        raise UnsupportedModel(
            f"the checkpoint is quantised by {method!r} (quantization_config in config.json), which is not "
            f"implemented{nearest(method, list(schemes))}{known}"
        )
    return schemes[method]


def open_weights(config: Config) -> WeightReader:
    """A reader of the model's weights in which quantised ones are decoded. Raises WeightError, PluginLoadError."""
    reader = open_reader(ModelSource.of(config.model))
    scheme = quantization_scheme(config.model.hf_config, config.extensions.quantization_schemes)
    if scheme is None:
        return reader
    decoded: WeightReader = scheme.load()(reader, config.model.hf_config["quantization_config"])
    return decoded
