"""64-bit ARM processors as a platform."""

from __future__ import annotations

from platforms._shared.native.platform import HostPlatform
from platforms._shared.native.plugin import HostOptions
from platforms.arm.plugin import NAME


class ArmPlatform(HostPlatform):
    """The native kernels of `csrc/cpu` on 64-bit ARM processors."""

    def __init__(self, options: HostOptions) -> None:
        super().__init__(NAME, options.threads)
