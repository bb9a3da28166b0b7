"""Epsilon sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from core.hookspecs import hookimpl
from core.platform import PluginInfo


class EpsilonOptions(msgspec.Struct, frozen=True):
    """`--plugin-opt acme_epsilon.KEY=VALUE`."""

    epsilon: Annotated[float, msgspec.Meta(description="tokens less likely than this are left out")] = 0.001


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="acme_epsilon", vendor="acme", version="1.0", api=(1, 0), options=EpsilonOptions)


@hookimpl
def samplers() -> Mapping[str, str]:
    return {"epsilon": "acme_epsilon.sampler:EpsilonSampler"}
