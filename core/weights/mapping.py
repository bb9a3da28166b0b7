"""GGUF's words in Hugging Face's: tensor names, architectures, and the header as a `config.json`.

GGUF's keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; its tensor names are llama.cpp's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UnsupportedModel, WeightError

#: general.architecture -> (`architectures[0]`, `model_type`). Mistral's files say llama.
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
#: Architectures whose Q and K rows llama.cpp stores with each head's two rotary halves interleaved.
PERMUTED = frozenset({"llama"})

#: Llama 3's rope scaling as a tensor of divisors; `_llama3_scaling` turns it into config words.
ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

_GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d{1,6})\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


def hf_name(name: str) -> str | None:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; None for a tensor of no known model."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer, part, kind = match.group("layer", "part", "kind")
    if layer is None:
        return f"{_GLOBAL[part]}.{kind}" if part in _GLOBAL else None
    return f"model.layers.{int(layer)}.{_BLOCK[part]}.{kind}" if part in _BLOCK else None


def interleaved_rows(num_heads: int, num_rows: int) -> NDArray[np.int64]:
    """`[num_rows]`: the GGUF row that holds each Hugging Face row of a permuted Q or K projection.

    Hugging Face rotates element `i` of a head with `i + head_dim / 2`; llama.cpp stores such pairs side by side.
    """
    stored = np.arange(num_rows, dtype=np.int64)
    return stored.reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(num_rows)


class GGUFConfig:
    """A GGUF header's metadata with typed look-ups; each error names the key. Raises `UnsupportedModel` for an
    architecture that has no mapping."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self.metadata = metadata
        self.architecture = self._get("general.architecture", str, None)
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UnsupportedModel(f"{path}: architecture {self.architecture!r}; core reads GGUF files of {known}")
        if (parts := self.integer("split.count", 1, prefixed=False)) > 1:
            raise UnsupportedModel(f"{path}: one of {parts} parts; join them first (llama-gguf-split --merge)")
        if self.integer("expert_count", 0) > 0:
            raise UnsupportedModel(f"{path}: a mixture of experts; core reads dense {self.architecture} GGUF files")

    def integer(self, key: str, default: int | None = None, *, prefixed: bool = True) -> int:
        """A non-negative int below 2^31. Required where there is no default; bool and list are refused."""
        key = f"{self.architecture}.{key}" if prefixed else key
        value = self._get(key, int, default)
        if not 0 <= value < 1 << 31:
            raise WeightError(self.path, f"metadata {key!r} is {value}, out of range")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite positive float, as the shortest decimal that is the same float32: 1e-05, not 9.999999747e-06."""
        key = f"{self.architecture}.{key}"
        with np.errstate(over="ignore"):  # beyond float32: infinite, and refused as such
            value = float(str(np.float32(self._get(key, float, default))))
        if not (math.isfinite(value) and value > 0):
            raise WeightError(self.path, f"metadata {key!r} is {value}, not a positive number")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        return str(self._get(f"{self.architecture}.{key}", str, default))

    def has(self, key: str) -> bool:
        """Whether the architecture's `key` is there."""
        return f"{self.architecture}.{key}" in self.metadata

    def num_heads(self) -> tuple[int, int]:
        """(query heads, KV heads), the first a multiple of the second."""
        heads = self.integer("attention.head_count")
        kv_heads = self.integer("attention.head_count_kv", heads)
        if kv_heads == 0 or heads == 0 or heads % kv_heads:
            raise WeightError(self.path, f"{heads} attention heads cannot share {kv_heads} KV heads")
        return heads, kv_heads

    def _get(self, key: str, kind: type, default: object) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise WeightError(self.path, f"metadata {key!r} is missing")
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            shape = "a list" if isinstance(value, list) else repr(value)[:40]
            raise WeightError(self.path, f"metadata {key!r} is {shape} where core expects one {kind.__name__}")
        return value


def hf_config(
    config: GGUFConfig, shapes: Mapping[str, tuple[int, ...]], rope_factors: NDArray[np.float32] | None
) -> dict[str, Any]:
    """What the model's `config.json` would say.

    `shapes` are the tensors' by Hugging Face name; `rope_factors` is the tensor `rope_freqs.weight`, `[head_dim / 2]`.
    """
    architecture, model_type = ARCHITECTURES[config.architecture]
    heads, kv_heads = config.num_heads()
    hidden_size = config.integer("embedding_length")
    head_dim = config.integer("attention.key_length", hidden_size // heads)
    if config.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel(f"{config.path}: values of another size than keys")
    if config.integer("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModel(f"{config.path}: rotary embedding over a part of each head")
    embedding = shapes.get("model.embed_tokens.weight")
    if embedding is None or len(embedding) != 2:
        raise WeightError(config.path, "is missing or is not a matrix", tensor="token_embd.weight")
    theta = config.number("rope.freq_base", 10000.0)
    window = config.integer("attention.sliding_window", 0) or None
    if window is not None and config.architecture == "llama":
        architecture, model_type = "MistralForCausalLM", "mistral"
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": config.integer("feed_forward_length"),
        "num_hidden_layers": config.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": config.integer("context_length"),
        "rms_norm_eps": config.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(config, theta, head_dim, rope_factors),
        "sliding_window": window,
        "vocab_size": embedding[0],
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
        "mlp_bias": "model.layers.0.mlp.down_proj.bias" in shapes,
        **_special_tokens(config),
    }


def eos_token_ids(config: GGUFConfig) -> tuple[int, ...]:
    """The tokens that end an answer: end of sequence, of turn, of message."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    found = [config.integer(key, prefixed=False) for key in keys if key in config.metadata]
    return tuple(dict.fromkeys(found))


def _special_tokens(config: GGUFConfig) -> dict[str, int]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding"}
    present = {name: f"tokenizer.ggml.{key}_token_id" for name, key in keys.items()}
    return {
        f"{name}_token_id": config.integer(key, prefixed=False)
        for name, key in present.items()
        if key in config.metadata
    }


def _rope_scaling(
    config: GGUFConfig, theta: float, head_dim: int, factors: NDArray[np.float32] | None
) -> dict[str, Any] | None:
    if factors is not None:
        return _llama3_scaling(config, theta, head_dim, factors)
    kind = config.text("rope.scaling.type", "linear" if config.has("rope.scaling.factor") else "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": config.number("rope.scaling.factor")}
    if kind == "yarn":
        original = config.integer("rope.scaling.original_context_length")
        factor = config.number("rope.scaling.factor")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise UnsupportedModel(f"{config.path}: rope scaling {kind!r}; core reads linear, yarn and Llama 3's")


def _llama3_scaling(config: GGUFConfig, theta: float, head_dim: int, factors: NDArray[np.float32]) -> dict[str, Any]:
    """Llama 3.1's rope scaling out of the divisors that the converter left of it.

    The file keeps the divisor of each frequency, not the four numbers behind them. Three of those are the same in every
    published model and the fourth is the largest divisor; that they give back the file's divisors is checked.
    """
    factor = float(factors.max())
    same_size = factors.shape == (head_dim // 2,) and factor >= 1.0
    if not same_size or not np.allclose(factors, llama3_factors(theta, head_dim, factor), rtol=1e-4):
        raise UnsupportedModel(f"{config.path}: tensor {ROPE_FACTORS!r} is not Llama 3's rope scaling")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def llama3_factors(theta: float, head_dim: int, factor: float) -> NDArray[np.float32]:
    """`[head_dim / 2]`: what Llama 3.1's scaling divides each rotary frequency by.

    Source: `apply_scaling` in github.com/meta-llama/llama-models, `models/llama3/model.py`.
    """
    low, high, original = _LLAMA3.values()
    with np.errstate(over="ignore"):  # a nonsensical theta; the result is compared, not used
        turns = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
