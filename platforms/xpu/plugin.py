"""The XPU platform's plugin. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

import os
from importlib import import_module

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms._shared.gpu import install
from platforms._shared.gpu.plugin import DeviceOptions, chosen_gpu, gpu_plugin_info, probe_gpu
from platforms.xpu import devices

NAME = "xpu"
INDEX = "--index-url https://download.pytorch.org/whl/xpu"


@hookimpl
def plugin_info() -> PluginInfo:
    """The contract this was written for."""
    return gpu_plugin_info(NAME, DeviceOptions)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE with a GPU that this torch can drive; BROKEN where there is one and something keeps it from running."""
    return probe_gpu(NAME, DeviceOptions, env, _found())


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; torch is imported here."""
    _, info = chosen_gpu(NAME, DeviceOptions, ctx, _found())
    created: Platform = import_module("platforms.xpu.platform").XpuPlatform(info)
    return created


def _found() -> ProbeResult:
    missing = install.missing(install.torch_versions(), "xpu", "xpu", INDEX)
    return ProbeResult(state="ABSENT", reason=missing) if missing else devices.find(os.environ)
