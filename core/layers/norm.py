"""Norms, with or without the residual sum before them."""

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


class LayerNorm:
    """Layer norm of rows of `size` columns (Ba et al. 2016), with a bias."""

    def __init__(self, builder: Builder, name: str, size: int, eps: float) -> None:
        self.weight = builder.weight(f"{name}.weight", [(f"{name}.weight", size)])
        self.bias = builder.weight(f"{name}.bias", [(f"{name}.bias", size)])
        self.eps = eps

    def add(self, x: Value, residual: Value) -> Value:
        """norm(x + residual), [T, size]."""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, eps=self.eps)
