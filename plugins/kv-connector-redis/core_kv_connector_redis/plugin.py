"""What core is told at start-up: the options and where the connector lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from core.hookspecs import hookimpl
from core.platform import PluginInfo

NAME = "redis"

Seconds = Annotated[float, Meta(gt=0, le=60)]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`--plugin-opt redis.KEY=VALUE`."""

    url: Annotated[str, Meta(description="redis://HOST:PORT/DB, rediss:// for TLS, or unix:///PATH")] = (
        "redis://127.0.0.1:6379/0"
    )
    password_file: Annotated[
        str, Meta(description="file with the password, which a URL would show to everyone on the machine")
    ] = ""
    prefix: Annotated[str, Meta(min_length=1, description="what every key begins with")] = "core-kv"
    ttl: Annotated[int, Meta(ge=0, description="seconds that an unused block is kept; 0: until Redis evicts it")] = (
        86400
    )
    max_value_bytes: Annotated[
        int, Meta(ge=1, le=512 << 20, description="largest block to accept; Redis itself holds up to 512 MiB")
    ] = 64 << 20
    connect_timeout: Annotated[Seconds, Meta(description="seconds for a connection to be made")] = 0.5
    lookup_timeout: Annotated[Seconds, Meta(description="seconds for a lookup, during which all requests wait")] = 0.05
    timeout: Annotated[Seconds, Meta(description="seconds for a block to be sent or brought")] = 1.0


@hookimpl
def plugin_info() -> PluginInfo:
    """The plugin."""
    return PluginInfo(name=NAME, vendor="core", version="0.1.0", api=(1, 0), options=Options)


@hookimpl
def kv_connectors() -> Mapping[str, str]:
    """The one connector."""
    return {NAME: "core_kv_connector_redis.connector:RedisConnector"}
