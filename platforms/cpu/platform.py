"""The CPU as a platform."""

from __future__ import annotations

from platforms._shared.native.platform import HostPlatform
from platforms._shared.native.plugin import HostOptions
from platforms.cpu.plugin import NAME


class CpuPlatform(HostPlatform):
    """The native kernels of `csrc/cpu` on this machine's processors: x86-64, and those that no other platform drives."""

    def __init__(self, options: HostOptions) -> None:
        super().__init__(NAME, options.threads)
