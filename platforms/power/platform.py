"""POWER processors as a platform."""

from __future__ import annotations

from platforms._shared.native.platform import HostPlatform
from platforms._shared.native.plugin import HostOptions
from platforms.power.plugin import NAME


class PowerPlatform(HostPlatform):
    """The native kernels of `csrc/cpu` on POWER processors (ppc64le, POWER8 and later)."""

    def __init__(self, options: HostOptions) -> None:
        super().__init__(NAME, options.threads)
