"""TPUs as a platform, and XLA's CPU device in their place."""

from __future__ import annotations

from pathlib import Path

from core.errors import PlatformBroken
from core.platform import DeviceInfo
from platforms._shared import host
from platforms._shared.xla.platform import XlaPlatform
from platforms.tpu import chips
from platforms.tpu.plugin import NAME, TpuOptions, parse_buckets


def create(options: TpuOptions) -> XlaPlatform:
    """Makes the process's one XLA client. Raises PlatformBroken, ConfigError."""
    cache = Path(options.cache_dir).expanduser() if options.cache_dir else None
    try:
        return XlaPlatform(NAME, _device(options), parse_buckets(options), cache)
    except RuntimeError as error:
        busy = chips.holder(Path("/"))
        why = f"process {busy} has it open; a chip serves one process" if busy is not None else str(error)
        raise PlatformBroken(f"{NAME}: no XLA client for this device could be made: {why}") from error


def _device(options: TpuOptions) -> DeviceInfo:
    if options.device == "cpu":
        return host.device_info()
    return DeviceInfo(index=0, name=chips.on_pci(Path("/"))[0])
