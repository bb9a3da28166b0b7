"""What the plugins of `cuda`, `rocm` and `xpu` share. Imports no torch: it runs in the process that chooses a platform."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from core.errors import ConfigError
from core.hookspecs import parse_own_options
from core.platform import DeviceInfo, PlatformContext, PluginInfo, ProbeEnv, ProbeResult


class DeviceOptions(msgspec.Struct, frozen=True):
    """`--platform-opt NAME.KEY=VALUE`."""

    device: Annotated[int, Meta(ge=0, description="which device, as `core platforms` counts them")] = 0


class GraphOptions(DeviceOptions, frozen=True):
    """Of a platform that captures steps."""

    graphs: Annotated[
        bool, Meta(description="capture small steps; false: launch every kernel, to look for a fault")
    ] = True


_Options = TypeVar("_Options", bound=DeviceOptions)


def gpu_plugin_info(name: str, options: type[DeviceOptions]) -> PluginInfo:
    """The contract that these platforms were written for."""
    return PluginInfo(name=name, vendor="core", version="0.1.0", api=(1, 2), options=options)


def probe_gpu(name: str, options: type[DeviceOptions], env: ProbeEnv, found: ProbeResult) -> ProbeResult:
    """What was found, where the options mean one of the devices. Raises ConfigError where they do not."""
    if found.state == "AVAILABLE":
        _chosen(name, parse_own_options(name, env.options, options), found)
    return found


def chosen_gpu(
    name: str, options: type[_Options], ctx: PlatformContext, found: ProbeResult
) -> tuple[_Options, DeviceInfo]:
    """The options, and the device that they mean. Raises ConfigError where there is none of that number."""
    given = parse_own_options(name, ctx.options, options)
    return given, _chosen(name, given, found)


def _chosen(name: str, options: DeviceOptions, found: ProbeResult) -> DeviceInfo:
    for device in found.devices:
        if device.index == options.device:
            return device
    indices = ", ".join(str(device.index) for device in found.devices)
    raise ConfigError(f"--platform-opt {name}.device", f"{options.device} is not one of the devices found: {indices}")
