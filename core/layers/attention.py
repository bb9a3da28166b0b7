"""Attention: over the paged KV cache, and within a step."""

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


class EncoderAttention:
    """Attention of each sequence's rows to all of them, in both directions; nothing is kept for another step."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        self.num_heads = num_heads
        self.head_dim = head_dim

    def __call__(self, ctx: StepContext, query: Value, key: Value, value: Value) -> Value:
        """query, key and value [T, heads * D] -> [T, heads * D]."""
        return ops.encoder_attention(
            query,
            key,
            value,
            ctx.query_start,
            head_dim=self.head_dim,
            num_kv_heads=self.num_heads,
            scale=self.head_dim**-0.5,
        )
