"""BERT (Devlin et al. 2019): an encoder whose blocks norm after the residual sum. RoBERTa (Liu et al. 2019) and XLM-R
(Conneau et al. 2020) differ in where positions begin and in the head that classifies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core import ops
from core.errors import UnsupportedModel
from core.layers import Builder, Embedding, EncoderAttention, LayerNorm, Linear, StepContext
from core.pooling import PoolerConfig, position_offset
from core.program import Value
from core.types import DType

#: `hidden_act` by the names of `core.ops.activation`.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes, and `prefix`, the name of the encoder in checkpoints that have a head beside it."""

    prefix: str
    vocab_size: int
    max_positions: int
    type_vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    activation: str

    @classmethod
    def read(cls, hf: Mapping[str, Any]) -> EncoderSettings:
        """From `config.json`. Raises UnsupportedModel naming what does not fit."""
        if hf.get("position_embedding_type", "absolute") != "absolute":
            raise UnsupportedModel(f"position_embedding_type {hf['position_embedding_type']!r}; known: absolute")
        if hf.get("hidden_act", "gelu") not in _ACTIVATIONS:
            raise UnsupportedModel(
                f"hidden_act {hf['hidden_act']!r} is not implemented; known: {', '.join(_ACTIVATIONS)}"
            )
        return cls(
            prefix="bert" if hf.get("model_type", "bert") == "bert" else "roberta",
            vocab_size=int(hf["vocab_size"]),
            max_positions=int(hf["max_position_embeddings"]),
            type_vocab_size=int(hf.get("type_vocab_size", 2)),
            hidden_size=int(hf["hidden_size"]),
            intermediate_size=int(hf["intermediate_size"]),
            num_layers=int(hf["num_hidden_layers"]),
            num_heads=int(hf["num_attention_heads"]),
            norm_eps=float(hf.get("layer_norm_eps", 1e-12)),
            activation=_ACTIVATIONS[hf.get("hidden_act", "gelu")],
        )


class EncoderLayer:
    """Attention and MLP, the sum of each with its input normed."""

    def __init__(self, builder: Builder, s: EncoderSettings, layer: int) -> None:
        name, hidden = f"{s.prefix}.encoder.layer.{layer}", s.hidden_size
        parts = [(f"{name}.attention.self.{part}", hidden) for part in ("query", "key", "value")]
        self.qkv = Linear(builder, f"{name}.attention.self.qkv", parts, hidden, bias=True)
        self.attention = EncoderAttention(s.num_heads, hidden // s.num_heads)
        self.output = _dense(builder, f"{name}.attention.output.dense", hidden, hidden)
        self.attention_norm = LayerNorm(builder, f"{name}.attention.output.LayerNorm", hidden, s.norm_eps)
        self.up = _dense(builder, f"{name}.intermediate.dense", s.intermediate_size, hidden)
        self.down = _dense(builder, f"{name}.output.dense", hidden, s.intermediate_size)
        self.norm = LayerNorm(builder, f"{name}.output.LayerNorm", hidden, s.norm_eps)
        self.widths = [hidden] * 3
        self.activation = s.activation

    def __call__(self, ctx: StepContext, x: Value) -> Value:
        """[T, H] -> [T, H]."""
        query, key, value = ops.split(self.qkv(x), self.widths)
        x = self.attention_norm.add(self.output(self.attention(ctx, query, key, value)), x)
        return self.norm.add(self.down(ops.activation(self.up(x), kind=self.activation)), x)


class Encoder:
    """Embeddings of words, positions and segments, a run of layers, and a head where there is one."""

    def __init__(self, builder: Builder, hf: Mapping[str, Any], pooler: PoolerConfig) -> None:
        s = EncoderSettings.read(hf)
        if builder.world > 1:
            raise UnsupportedModel("an encoder runs on one device; set --tensor-parallel-size to 1")
        builder.position_offset = position_offset(hf)
        name, hidden = f"{s.prefix}.embeddings", s.hidden_size
        self.words = Embedding(builder, f"{name}.word_embeddings", s.vocab_size, hidden)
        self.positions = Embedding(builder, f"{name}.position_embeddings", s.max_positions, hidden)
        self.segments = Embedding(builder, f"{name}.token_type_embeddings", s.type_vocab_size, hidden)
        self.norm = LayerNorm(builder, f"{name}.LayerNorm", hidden, s.norm_eps)
        self.layers = [EncoderLayer(builder, s, layer) for layer in range(s.num_layers)]
        self.head: list[Linear] = []
        if pooler.task == "classify":
            dense, out = _HEADS[s.prefix]
            self.head = [_dense(builder, dense, hidden, hidden), _dense(builder, out, pooler.size, hidden)]

    def hidden(self, ctx: StepContext) -> Value:
        """The last layer's states, [T, H]."""
        assert ctx.segments is not None, "a model that pools has this input"
        words = ops.add(self.words(ctx.token_ids), self.segments(ctx.segments))
        x = self.norm.add(words, self.positions(ctx.positions))
        for layer in self.layers:
            x = layer(ctx, x)
        return x

    def scores(self, pooled: Value) -> Value:
        """The first token's state [S, H] -> float32 [S, labels]."""
        dense, out = self.head
        return out(ops.activation(dense(pooled), kind="tanh"), out_dtype=DType.FLOAT32)


#: The two layers of a head that classifies, by the encoder's name.
_HEADS = {"bert": ("bert.pooler.dense", "classifier"), "roberta": ("classifier.dense", "classifier.out_proj")}


def _dense(builder: Builder, name: str, outputs: int, inputs: int) -> Linear:
    return Linear(builder, name, [(name, outputs)], inputs, bias=True)
