"""A plugin that imports torch at its top."""

from __future__ import annotations

import torch

from core.hookspecs import hookimpl
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

assert torch.__version__


@hookimpl
def plugin_info() -> PluginInfo:
    return PluginInfo(name="mutant-torch", vendor="tests", version="0.1", api=(1, 0), experimental=True)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    return ProbeResult(state="AVAILABLE", reason="runs anywhere")


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    raise NotImplementedError("only its import is of interest")
