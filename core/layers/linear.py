"""Linear layers, whole or sharded, one checkpoint tensor or several stacked."""

from __future__ import annotations

from collections.abc import Sequence

from core import ops
from core.layers.base import Builder
from core.program import Value
from core.types import DType


class Linear:
    """y = x W^T + b, W being the rows of `parts` [(checkpoint prefix, rows)] stacked.

    Stacking (q, k and v; gate and up) reads x once. `shard_dim` 0 splits the outputs over devices, 1 the inputs.
    """

    def __init__(
        self,
        builder: Builder,
        name: str,
        parts: Sequence[tuple[str, int]],
        in_features: int,
        *,
        bias: bool = False,
        shard_dim: int | None = None,
    ) -> None:
        weights = [(f"{part}.weight", rows) for part, rows in parts]
        self.weight = builder.weight(f"{name}.weight", weights, in_features, shard_dim=shard_dim)
        self.bias: Value | None = None
        if bias:
            biases = [(f"{part}.bias", rows) for part, rows in parts]
            self.bias = builder.weight(f"{name}.bias", biases, shard_dim=0 if shard_dim == 0 else None)

    def __call__(self, x: Value, *, out_dtype: DType | None = None) -> Value:
        """[T, in_features] -> [T, out_features]."""
        return ops.linear(x, self.weight, self.bias, out_dtype=out_dtype)
