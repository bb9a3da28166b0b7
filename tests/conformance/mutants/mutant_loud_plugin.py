"""A plugin that prints at import."""

from __future__ import annotations

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

print("mutant: found a device")


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="mutant-loud", vendor="tests", version="0.1", api=(1, 0), experimental=True)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    return ProbeResult(state="AVAILABLE", reason="runs anywhere")


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    raise NotImplementedError("only its import is of interest")
