"""From hidden states to one row for each sequence."""

from __future__ import annotations

from core import ops
from core.layers.base import StepContext
from core.pooling import Pooling
from core.program import Value


def pool(ctx: StepContext, hidden: Value, pooling: Pooling) -> Value:
    """hidden [T, H] -> [S, H]: each sequence's mean, in float32, or its first or last row of this step."""
    if pooling == "mean":
        return ops.mean_rows(hidden, ctx.query_start)
    assert ctx.first_rows is not None, "a model that pools has this input"
    return ops.select_rows(hidden, ctx.first_rows if pooling == "cls" else ctx.logits_rows)
