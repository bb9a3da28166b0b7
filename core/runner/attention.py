"""Which attention backend serves a model's layers."""

from __future__ import annotations

from collections.abc import Sequence

from core.config import Config
from core.errors import Unsupported
from core.layers.base import AttentionSpec
from core.platform import AttentionBackend, AttentionQuery


def attention_query(spec: AttentionSpec, config: Config) -> AttentionQuery:
    """What `spec`'s layer asks of an attention backend."""
    return AttentionQuery(
        head_dim=spec.head_dim,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        window=spec.window,
        dtype=config.model.dtype,
        kv_dtype=config.cache.dtype,
        block_size=config.cache.block_size,
    )


def choose_attention(
    backends: Sequence[AttentionBackend], layers: Sequence[AttentionSpec], config: Config
) -> AttentionBackend:
    """The first backend that serves every layer. Raises Unsupported with each one's reason."""
    reasons = []
    for backend in backends:
        refusals = [s.reason for spec in layers if not (s := backend.supports(attention_query(spec, config)))]
        if not refusals:
            return backend
        reasons.append(f"{backend.name}: {refusals[0]}")
    raise Unsupported("attention of this model", "; ".join(reasons) or "the platform has no attention backend")
