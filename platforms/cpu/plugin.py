"""The CPU platform's plugin. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import msgspec
from msgspec import Meta

from core.hookspecs import hookimpl, parse_own_options
from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms._shared import host

NAME = "cpu"
NATIVE = "platforms._shared._native"


_SPIN_COUNT = "10000"


class CpuOptions(msgspec.Struct, frozen=True):
    """`--platform-opt cpu.KEY=VALUE`."""

    threads: Annotated[
        int | None, Meta(description="worker threads of torch and the native kernels; default: one a usable core")
    ] = None


@hookimpl
def plugin_info() -> PluginInfo:
    """The contract this was written for."""
    return PluginInfo(name=NAME, vendor="core", version="0.1.0", api=(1, 0), options=CpuOptions)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE with torch and the native kernels; ABSENT without torch; BROKEN if the kernels do not load."""
    if find_spec("torch") is None:
        return ProbeResult(state="ABSENT", reason="torch is not installed: pip install 'core[cpu]'")
    try:
        tier = import_module(NATIVE).isa()
    except (ImportError, ValueError) as error:
        return ProbeResult(
            state="BROKEN",
            reason=f"its native kernels cannot be used: {error}. If they are missing or were built for another Python, "
            "build them again: pip install --force-reinstall --no-deps core, or in a clone pip install -e .",
        )
    device = host.device_info()
    reason = f"{device.name}, {device.details['cores']} cores, {tier} kernels"
    return ProbeResult(state="AVAILABLE", reason=reason, devices=(device,), score=0)


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; torch is imported here."""
    _spin_briefly()
    platform = import_module("platforms.cpu.platform")
    created: Platform = platform.CpuPlatform(parse_own_options(NAME, ctx.options, CpuOptions))
    return created


def _spin_briefly() -> None:
    """Let OpenMP's threads wait for each other awake for tens of microseconds, not for milliseconds.

    libgomp reads this when torch loads it. With its default a thread whose partner has lost its core to another
    process, the server's frontend for one, burns the core that the partner needs (docs/decisions/003-native-threads.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
