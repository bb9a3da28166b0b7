"""A plugin that takes its time to import."""

from __future__ import annotations

import time

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

time.sleep(0.15)


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="mutant-slow", vendor="tests", version="0.1", api=(1, 0), experimental=True)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    return ProbeResult(state="AVAILABLE", reason="runs anywhere")


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    raise NotImplementedError("only its import is of interest")
