"""A route that answers in capitals."""

from __future__ import annotations

from collections.abc import Mapping

from core.hookspecs import hookimpl
from core.platform import PluginInfo


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="acme_shout", vendor="acme", version="1.0", api=(1, 0))


@hookimpl
def server_routes() -> Mapping[str, str]:
    return {"shout": "acme_shout.routes:routes"}
