"""The simulated platform's plugin. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from core.hookspecs import hookimpl, parse_own_options
from core.platform import DeviceInfo, Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms.sim.profile import Profile, load_profile

NAME = "sim"


class SimOptions(msgspec.Struct, frozen=True):
    """`--platform-opt sim.KEY=VALUE`."""

    profile: Annotated[str, Meta(description="the device: a shipped profile's name, or the path of one's own")] = "h100"
    clock: Annotated[
        Literal["real", "virtual"], Meta(description="real: a step takes its time; virtual: time only is counted")
    ] = "real"


@hookimpl
def plugin_info() -> PluginInfo:
    """Experimental, so that nobody is served by a simulation who did not ask for one."""
    return PluginInfo(name=NAME, vendor="core", version="0.1.0", api=(1, 0), experimental=True, options=SimOptions)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE on any machine that has torch, in which models are recorded. Raises ConfigError on a bad profile."""
    profile = load_profile(parse_own_options(NAME, env.options, SimOptions).profile)
    if find_spec("torch") is None:
        return ProbeResult(state="ABSENT", reason="torch is not installed: pip install 'core[cpu]'")
    return ProbeResult(state="AVAILABLE", reason=f"simulates {profile.name}", devices=devices(profile), score=0)


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; torch is imported here."""
    options = parse_own_options(NAME, ctx.options, SimOptions)
    platform = import_module("platforms.sim.platform")
    created: Platform = platform.SimPlatform(load_profile(options.profile), virtual=options.clock == "virtual")
    return created


def devices(profile: Profile) -> tuple[DeviceInfo, ...]:
    """As many as the profile's link joins."""
    return tuple(
        DeviceInfo(index=index, name=f"simulated {profile.name}", memory_bytes=profile.memory_bytes)
        for index in range(profile.max_devices)
    )
