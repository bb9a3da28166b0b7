"""How Acme's models write: `#` before a thought's line, `@name {…}` for a call."""

from __future__ import annotations

from collections.abc import Mapping

from core.hookspecs import hookimpl
from core.platform import PluginInfo


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="acme_parsers", vendor="acme", version="1.0", api=(1, 0))


@hookimpl
def reasoning_parsers() -> Mapping[str, str]:
    return {"acme": "acme_parsers.thoughts:Thoughts"}


@hookimpl
def tool_parsers() -> Mapping[str, str]:
    return {"acme": "acme_parsers.calls:Calls"}
