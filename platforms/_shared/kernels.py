"""A kernel table of exactly what a platform has: an op that it does not know is refused, not left to a reference."""

from __future__ import annotations

from collections.abc import Mapping

from core.errors import Unsupported
from core.platform import Kernel, KernelTable, Support


class GivenKernels(KernelTable):
    """The kernels that it is given, by op."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels

    def supports(self, op: str) -> Support:
        """Whether `op` was given."""
        return Support(True) if op in self._kernels else Support(False, f"this platform has no kernel for {op!r}")

    def get(self, op: str) -> Kernel:
        """The kernel. Raises Unsupported."""
        if op not in self._kernels:
            raise Unsupported(f"op {op}", self.supports(op).reason)
        return self._kernels[op]
