"""Token embedding and the head that may share its weight."""

from __future__ import annotations

from core import ops
from core.layers.base import Builder
from core.program import Value
from core.types import DType


class Embedding:
    """A table [vocab, hidden] that turns token ids into rows, and hidden states into logits where it is tied."""

    def __init__(self, builder: Builder, name: str, vocab_size: int, hidden_size: int) -> None:
        self.weight = builder.weight(f"{name}.weight", [(f"{name}.weight", vocab_size)], hidden_size)

    def __call__(self, token_ids: Value) -> Value:
        """[T] int32 -> [T, hidden]."""
        return ops.embedding(token_ids, self.weight)

    def logits(self, hidden: Value) -> Value:
        """[S, hidden] -> float32 [S, vocab]."""
        return ops.linear(hidden, self.weight, out_dtype=DType.FLOAT32)
