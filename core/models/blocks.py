"""The decoder that the Llama family shares: pre-norm attention and SwiGLU blocks around a residual stream.

A model is embed, layers[i:j], head, so that stages of a pipeline can hold a part each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core import ops
from core.errors import UnsupportedModel
from core.layers import Attention, Builder, Embedding, Linear, RMSNorm, RotaryEmbedding, StepContext
from core.layers.rope import RopeConfig
from core.program import Value
from core.types import DType


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """What differs between members of the family. `windows[i]` is layer i's sliding window, None for full."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    tie_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    has_head: bool = True  # False: its hidden states are what is wanted

    @property
    def num_layers(self) -> int:
        """How many decoder layers."""
        return len(self.windows)


def read_decoder(hf: Mapping[str, Any], *, window: int | None = None, **differences: Any) -> DecoderSettings:
    """Settings from `config.json`, with a family's `differences`. Raises UnsupportedModel naming what does not fit."""
    activation = hf.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"hidden_act {activation!r} is not implemented; known: silu")
    try:
        hidden, heads = int(hf["hidden_size"]), int(hf["num_attention_heads"])
        layers, intermediate, vocab = hf["num_hidden_layers"], hf["intermediate_size"], hf["vocab_size"]
    except KeyError as error:
        raise UnsupportedModel(f"config.json lacks {error.args[0]!r}, which every decoder needs") from error
    head_dim = int(hf.get("head_dim") or hidden // heads)
    return DecoderSettings(
        vocab_size=int(vocab),
        hidden_size=hidden,
        intermediate_size=int(intermediate),
        num_heads=heads,
        num_kv_heads=int(hf.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        rope=RopeConfig.read(hf, head_dim),
        windows=_windows(hf, int(layers), window),
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
        **differences,
    )


def _windows(hf: Mapping[str, Any], layers: int, window: int | None) -> tuple[int | None, ...]:
    """Each layer's window: `layer_types` says which layers slide, where it is given."""
    if window is None:
        return (None,) * layers
    kinds = hf.get("layer_types") or ["sliding_attention"] * layers
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != layers:
        raise UnsupportedModel(f"layer_types {sorted(unknown)} for {layers} layers is not implemented")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


class SelfAttention:
    """q, k and v in one matrix product, optional norms of q and k, rotation, attention, output."""

    def __init__(self, builder: Builder, s: DecoderSettings, layer: int, rope: RotaryEmbedding) -> None:
        name = f"model.layers.{layer}.self_attn"
        q, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        parts = [(f"{name}.q_proj", q), (f"{name}.k_proj", kv), (f"{name}.v_proj", kv)]
        self.qkv = Linear(builder, f"{name}.qkv_proj", parts, s.hidden_size, bias=s.qkv_bias, shard_dim=0)
        self.output = Linear(
            builder, f"{name}.o_proj", [(f"{name}.o_proj", s.hidden_size)], q, bias=s.output_bias, shard_dim=1
        )
        self.q_norm = RMSNorm(builder, f"{name}.q_norm", s.head_dim, s.norm_eps) if s.qk_norm else None
        self.k_norm = RMSNorm(builder, f"{name}.k_norm", s.head_dim, s.norm_eps) if s.qk_norm else None
        self.widths = [width // builder.world for width in (q, kv, kv)]
        self.rope = rope
        self.attention = Attention(
            builder,
            layer,
            num_heads=s.num_heads // builder.world,
            num_kv_heads=s.num_kv_heads // builder.world,
            head_dim=s.head_dim,
            window=s.windows[layer],
        )

    def __call__(self, ctx: StepContext, x: Value, angles: Value) -> Value:
        """[T, H] -> [T, H]."""
        query, key, value = ops.split(self.qkv(x), self.widths)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return self.output(self.attention(ctx, self.rope(query, angles), self.rope(key, angles), value))


class GatedMLP:
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, builder: Builder, s: DecoderSettings, layer: int) -> None:
        name = f"model.layers.{layer}.mlp"
        parts = [(f"{name}.gate_proj", s.intermediate_size), (f"{name}.up_proj", s.intermediate_size)]
        self.gate_up = Linear(builder, f"{name}.gate_up_proj", parts, s.hidden_size, bias=s.mlp_bias, shard_dim=0)
        down = [(f"{name}.down_proj", s.hidden_size)]
        self.down = Linear(builder, f"{name}.down_proj", down, s.intermediate_size, bias=s.mlp_bias, shard_dim=1)

    def __call__(self, x: Value) -> Value:
        """[T, H] -> [T, H]."""
        return self.down(ops.silu_mul(self.gate_up(x)))


class DecoderLayer:
    """Attention and MLP, each behind a norm, each added to the residual stream."""

    def __init__(self, builder: Builder, s: DecoderSettings, layer: int, rope: RotaryEmbedding) -> None:
        name = f"model.layers.{layer}"
        self.input_norm = RMSNorm(builder, f"{name}.input_layernorm", s.hidden_size, s.norm_eps)
        self.attention = SelfAttention(builder, s, layer, rope)
        self.mlp_norm = RMSNorm(builder, f"{name}.post_attention_layernorm", s.hidden_size, s.norm_eps)
        self.mlp = GatedMLP(builder, s, layer)

    def __call__(self, ctx: StepContext, x: Value, residual: Value | None, angles: Value) -> tuple[Value, Value]:
        """x [T, H] not yet added to the residual [T, H] -> the same pair, one layer on."""
        if residual is None:
            normed, residual = self.input_norm(x), x
        else:
            normed, residual = self.input_norm.add(x, residual)
        x = self.attention(ctx, normed, angles)
        normed, residual = self.mlp_norm.add(x, residual)
        return self.mlp(normed), residual


class DecoderModel:
    """Embedding, a run of decoder layers, final norm and head."""

    def __init__(self, builder: Builder, settings: DecoderSettings) -> None:
        if settings.num_kv_heads % builder.world or settings.num_heads % builder.world:
            raise UnsupportedModel(f"{settings.num_kv_heads} KV heads cannot be split over {builder.world} devices")
        self.embed = Embedding(builder, "model.embed_tokens", settings.vocab_size, settings.hidden_size)
        self.rope = RotaryEmbedding(builder, settings.rope)
        self.layers = [DecoderLayer(builder, settings, i, self.rope) for i in range(settings.num_layers)]
        self.norm = RMSNorm(builder, "model.norm", settings.hidden_size, settings.norm_eps)
        self.head: Linear | None = None
        if settings.has_head and not settings.tie_embeddings:
            self.head = Linear(builder, "lm_head", [("lm_head", settings.vocab_size)], settings.hidden_size)

    def __call__(self, ctx: StepContext) -> Value:
        """The step's logits: float32 [S, vocab], of each sequence's last row."""
        x, residual = self._run(ctx)
        last, last_residual = ops.select_rows(x, ctx.logits_rows), ops.select_rows(residual, ctx.logits_rows)
        hidden, _ = self.norm.add(last, last_residual)
        return self.embed.logits(hidden) if self.head is None else self.head(hidden, out_dtype=DType.FLOAT32)

    def hidden(self, ctx: StepContext) -> Value:
        """The step's normed states, [T, H]."""
        normed, _ = self.norm.add(*self._run(ctx))
        return normed

    def _run(self, ctx: StepContext) -> tuple[Value, Value]:
        """The last layer's output and the residual stream that it is yet to be added to, both [T, H]."""
        x, residual = self.embed(ctx.token_ids), None
        angles = self.rope.angles(ctx.positions)
        for layer in self.layers:
            x, residual = layer(ctx, x, residual, angles)
        assert residual is not None, "a decoder has at least one layer"
        return x, residual
