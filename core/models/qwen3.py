"""Qwen3 (Yang et al. 2025): no biases, a norm on each head of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.models.blocks import DecoderSettings, read_decoder
from core.models.qwen2 import window_of, with_layer_types


def settings(hf: Mapping[str, Any]) -> DecoderSettings:
    """`attention_bias` is false in all that were released, and honoured."""
    bias = bool(hf.get("attention_bias", False))
    return read_decoder(with_layer_types(hf), window=window_of(hf), qk_norm=True, qkv_bias=bias, output_bias=bias)
