"""The ROCm platform's plugin. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

import os
from importlib import import_module

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms._shared.gpu import install
from platforms._shared.gpu.plugin import GraphOptions, chosen_gpu, gpu_plugin_info, probe_gpu
from platforms.rocm import devices

NAME = "rocm"
INDEX = "--index-url https://download.pytorch.org/whl/rocm6.4"


@hookimpl
def plugin_info() -> PluginInfo:
    """The contract this was written for."""
    return gpu_plugin_info(NAME, GraphOptions)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE with a GPU that this torch can drive; BROKEN where there is one and something keeps it from running."""
    return probe_gpu(NAME, GraphOptions, env, _found())


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; torch is imported here."""
    options, info = chosen_gpu(NAME, GraphOptions, ctx, _found())
    created: Platform = import_module("platforms.rocm.platform").RocmPlatform(info, graphs=options.graphs)
    return created


def _found() -> ProbeResult:
    missing = install.missing(install.torch_versions(), "hip", "rocm", INDEX)
    return ProbeResult(state="ABSENT", reason=missing) if missing else devices.find(os.environ)
