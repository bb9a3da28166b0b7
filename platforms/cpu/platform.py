"""The CPU as a platform."""

from __future__ import annotations

from platforms._shared.native.platform import HostPlatform
from platforms.cpu.plugin import NAME, CpuOptions


class CpuPlatform(HostPlatform):
    """The native kernels of `csrc/cpu` on this machine's processors."""

    def __init__(self, options: CpuOptions) -> None:
        super().__init__(NAME, options.threads)
