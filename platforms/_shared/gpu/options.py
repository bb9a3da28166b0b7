"""What `--platform-opt` may say of a GPU platform, and the device that a probe's answer means by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from core.errors import ConfigError
from core.platform import DeviceInfo


class DeviceOptions(msgspec.Struct, frozen=True):
    """`--platform-opt NAME.KEY=VALUE`."""

    device: Annotated[int, Meta(ge=0, description="which device, as `core platforms` counts them")] = 0


class GraphOptions(DeviceOptions, frozen=True):
    """Of a platform that captures steps."""

    graphs: Annotated[
        bool, Meta(description="capture small steps; false: launch every kernel, to look for a fault")
    ] = True


def chosen_device(name: str, options: DeviceOptions, devices: Sequence[DeviceInfo]) -> DeviceInfo:
    """The device of `--platform-opt NAME.device`. Raises ConfigError where there is none of that number."""
    for device in devices:
        if device.index == options.device:
            return device
    indices = ", ".join(str(device.index) for device in devices)
    raise ConfigError(f"--platform-opt {name}.device", f"{options.device} is not one of the devices found: {indices}")
