"""What models are made of. Layers declare parameters when they are made and append ops when they are called."""

from core.layers.attention import Attention, EncoderAttention
from core.layers.base import Builder, Parameter, ShardSpec, StepContext
from core.layers.embedding import Embedding
from core.layers.linear import Linear
from core.layers.norm import LayerNorm, RMSNorm
from core.layers.pooling import pool
from core.layers.rope import RotaryEmbedding

__all__ = [
    "Attention",
    "Builder",
    "Embedding",
    "EncoderAttention",
    "LayerNorm",
    "Linear",
    "Parameter",
    "RMSNorm",
    "RotaryEmbedding",
    "ShardSpec",
    "StepContext",
    "pool",
]
