"""Attention over the paged KV cache."""

from __future__ import annotations

from core import ops
from core.layers.base import AttentionSpec, Builder, StepContext
from core.program import Value


class Attention:
    """Grouped-query attention (Ainslie et al. 2023), causal, full or within a sliding window."""

    def __init__(
        self,
        builder: Builder,
        layer: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int | None = None,
    ) -> None:
        self.spec = AttentionSpec(layer, num_heads, num_kv_heads, head_dim, window)
        builder.attention_layers.append(self.spec)

    def __call__(self, ctx: StepContext, query: Value, key: Value, value: Value) -> Value:
        """query [T, heads * D], key and value [T, kv_heads * D] -> [T, heads * D]."""
        spec = self.spec
        group, cache = ctx.groups[spec.layer], ctx.caches[spec.layer]
        ops.kv_write(key, value, cache, group.slot_mapping)
        return ops.attention(
            query,
            cache,
            group.block_table,
            ctx.query_start,
            ctx.seq_lens,
            head_dim=spec.head_dim,
            num_kv_heads=spec.num_kv_heads,
            scale=spec.head_dim**-0.5,
            window=spec.window,
        )
