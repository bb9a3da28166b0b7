"""The plugin of the platform `triton-interpret`: the GPU kernels, by Triton's interpreter, on host memory."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

from core.hookspecs import hookimpl
from core.platform import DeviceInfo, Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

NAME = "triton-interpret"


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name=NAME, vendor="core tests", version="0.1.0", api=(1, 2), experimental=True)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    if find_spec("triton") is None:
        return ProbeResult(state="ABSENT", reason="triton is not installed: make test-gpu-kernels installs it")
    return ProbeResult(state="AVAILABLE", reason="interpreted", devices=(DeviceInfo(index=0, name="interpreter"),))


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported
    import_module("interpreter_bfloat16").repair()
    platform: Platform = import_module("triton_interpret_platform").InterpretedPlatform()
    return platform
