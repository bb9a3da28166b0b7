"""The test connectors as a plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from core.hookspecs import hookimpl
from core.platform import PluginInfo


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`store`: connectors of one process with equal names share what they keep."""

    store: str = "default"
    fault: Literal["none", "raise", "raise-load", "hang", "short", "forget", "make"] = "none"


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="shelf", vendor="tests", version="0.1", api=(1, 0), options=Options)


@hookimpl
def kv_connectors() -> Mapping[str, str]:
    return {"shelf": "shelf:Shelf", "no-connector": "shelf:NotAConnector"}
