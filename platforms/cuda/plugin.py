"""The CUDA platform's plugin. Imports no torch and no NVML: it runs in the process that chooses a platform."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms._shared.gpu import install
from platforms._shared.gpu.plugin import GraphOptions, chosen_gpu, gpu_plugin_info, probe_gpu
from platforms.cuda import devices

NAME = "cuda"


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
    created: Platform = import_module("platforms.cuda.platform").CudaPlatform(info, graphs=options.graphs)
    return created


def _found() -> ProbeResult:
    versions = install.torch_versions()
    missing = install.missing(versions, "cuda", "cuda", "")
    if missing or versions is None:
        return ProbeResult(state="ABSENT", reason=missing)
    if find_spec("pynvml") is None:
        return ProbeResult(state="ABSENT", reason="nvidia-ml-py is not installed: pip install 'core[cuda]'")
    return devices.find(import_module("pynvml"), versions["cuda"], os.environ)
