"""Tokens that a request wants never."""

from __future__ import annotations

from collections.abc import Mapping

from core.hookspecs import hookimpl
from core.platform import PluginInfo


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="acme_banned", vendor="acme", version="1.0", api=(1, 0))


@hookimpl
def logits_processors() -> Mapping[str, str]:
    return {"banned": "acme_banned.processor:Banned"}
