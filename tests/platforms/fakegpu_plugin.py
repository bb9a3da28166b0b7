"""The plugin of the platform `fakegpu`."""

from __future__ import annotations

from importlib import import_module

from core.hookspecs import hookimpl
from core.platform import DeviceInfo, Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

DEVICE = DeviceInfo(index=0, name="host memory behind the GPUs' seam", memory_bytes=8 << 30)


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="fakegpu", vendor="core tests", version="0.1", api=(1, 2), experimental=True)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    return ProbeResult(state="AVAILABLE", reason="host memory", devices=(DEVICE,))


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    platform: Platform = import_module("fakegpu_platform").FakeGpuPlatform(DEVICE)
    return platform
