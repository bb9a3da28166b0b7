"""KV blocks in a directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from core.hookspecs import hookimpl
from core.platform import PluginInfo


class DirectoryOptions(msgspec.Struct, frozen=True):
    """`--plugin-opt acme_directory.KEY=VALUE`."""

    path: Annotated[str, msgspec.Meta(description="where the blocks lie")] = "/var/tmp/acme-kv"


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="acme_directory", vendor="acme", version="1.0", api=(1, 0), options=DirectoryOptions)


@hookimpl
def kv_connectors() -> Mapping[str, str]:
    return {"directory": "acme_directory.store:DirectoryStore"}
