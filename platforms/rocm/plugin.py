"""The ROCm platform's plugin. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

import os
from importlib import import_module

from core.hookspecs import hookimpl, parse_own_options
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms._shared.gpu import install
from platforms._shared.gpu.options import GraphOptions, chosen_device
from platforms.rocm import devices

NAME = "rocm"
INDEX = "--index-url https://download.pytorch.org/whl/rocm6.4"


@hookimpl
def plugin_info() -> PluginInfo:
    """The contract this was written for."""
    return PluginInfo(name=NAME, vendor="core", version="0.1.0", api=(1, 2), options=GraphOptions)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE with a GPU that this torch can drive; BROKEN where there is one and something keeps it from running."""
    found = _found()
    if found.state == "AVAILABLE":
        chosen_device(NAME, parse_own_options(NAME, env.options, GraphOptions), found.devices)
    return found


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; torch is imported here."""
    options = parse_own_options(NAME, ctx.options, GraphOptions)
    info = chosen_device(NAME, options, _found().devices)
    created: Platform = import_module("platforms.rocm.platform").RocmPlatform(info, graphs=options.graphs)
    return created


def _found() -> ProbeResult:
    missing = install.missing(install.torch_versions(), "hip", "rocm", INDEX)
    return ProbeResult(state="ABSENT", reason=missing) if missing else devices.find(os.environ)
