"""The plugin of the `static` test platform."""

from __future__ import annotations

from importlib import import_module

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="static", vendor="tests", version="0.1", api=(1, 0), experimental=True)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    return ProbeResult(state="AVAILABLE", reason="runs anywhere")


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    platform: Platform = import_module("static_platform").StaticPlatform()
    return platform
