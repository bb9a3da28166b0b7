"""Root-mean-square norm, with or without the residual sum before it."""

from __future__ import annotations

from core import ops
from core.layers.base import Builder
from core.program import Value


class RMSNorm:
    """RMSNorm over runs of `size` columns (Zhang & Sennrich 2019)."""

    def __init__(self, builder: Builder, name: str, size: int, eps: float) -> None:
        self.weight = builder.weight(f"{name}.weight", [(f"{name}.weight", size)])
        self.eps = eps

    def __call__(self, x: Value) -> Value:
        """[T, n * size] -> the same shape."""
        return ops.rms_norm(x, self.weight, eps=self.eps)

    def add(self, x: Value, residual: Value) -> tuple[Value, Value]:
        """norm(x + residual) and the sum itself, both [T, size]."""
        return ops.add_rms_norm(x, residual, self.weight, eps=self.eps)
