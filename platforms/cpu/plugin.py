"""The CPU platform's plugin. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

from importlib import import_module

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms._shared.native.plugin import host_options, host_plugin_info, probe_host

NAME = "cpu"


@hookimpl
def plugin_info() -> PluginInfo:
    """The contract this was written for."""
    return host_plugin_info(NAME)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """What this machine is to the platform."""
    return probe_host(NAME)


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; torch is imported here."""
    options = host_options(NAME, ctx)
    created: Platform = import_module("platforms.cpu.platform").CpuPlatform(options)
    return created
