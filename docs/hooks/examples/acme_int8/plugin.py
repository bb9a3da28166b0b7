"""Checkpoints with a byte for a weight, `quant_method` acme_int8."""

from __future__ import annotations

from collections.abc import Mapping

from core.hookspecs import hookimpl
from core.platform import PluginInfo


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="acme_int8", vendor="acme", version="1.0", api=(1, 0))


@hookimpl
def quantization_schemes() -> Mapping[str, str]:
    return {"acme_int8": "acme_int8.scheme:Int8Reader"}
