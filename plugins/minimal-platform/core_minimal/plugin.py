"""The hooks, in a module that is quick to import: every start-up of core imports it, whatever platform is chosen."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from core.hookspecs import hookimpl, parse_own_options
from core.platform import DeviceInfo, Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

NAME = "minimal"
DEVICE = DeviceInfo(index=0, name="this machine, through numpy")


class MinimalOptions(msgspec.Struct, frozen=True):
    """`--platform-opt minimal.KEY=VALUE`."""

    kernels: Annotated[
        Literal["numpy", "reference"], Meta(description="reference: core's own, to find out whose fault a token is")
    ] = "numpy"


@hookimpl
def plugin_info() -> PluginInfo:
    """Written for version 1.0 of the contract; chosen by name only."""
    return PluginInfo(name=NAME, vendor="core", version="0.1.0", api=(1, 0), experimental=True, options=MinimalOptions)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE wherever torch is, whose tensors the references take."""
    if find_spec("torch") is None:
        return ProbeResult(state="ABSENT", reason="torch is not installed: pip install torch")
    return ProbeResult(state="AVAILABLE", reason="numpy runs anywhere", devices=(DEVICE,))


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform, imported only now because its module imports torch."""
    options = parse_own_options(NAME, ctx.options, MinimalOptions)
    platform: Platform = import_module("core_minimal.platform").MinimalPlatform(options)
    return platform
