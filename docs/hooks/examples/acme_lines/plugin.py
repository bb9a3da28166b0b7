"""A line of JSON for each finished answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from core.hookspecs import hookimpl
from core.platform import PluginInfo


class LinesOptions(msgspec.Struct, frozen=True):
    """`--plugin-opt acme_lines.KEY=VALUE`."""

    path: Annotated[str, msgspec.Meta(description="the file to append to")] = "answers.jsonl"


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="acme_lines", vendor="acme", version="1.0", api=(1, 0), options=LinesOptions)


@hookimpl
def metrics_sinks() -> Mapping[str, str]:
    return {"lines": "acme_lines.sink:LinesSink"}
