"""Llama 1 to 3, SmolLM and their likes (Touvron et al. 2023; Grattafiori et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.models.blocks import DecoderSettings, read_decoder


def settings(hf: Mapping[str, Any]) -> DecoderSettings:
    """Full attention; `attention_bias` puts a bias on all four projections."""
    bias = bool(hf.get("attention_bias", False))
    return read_decoder(hf, qkv_bias=bias, output_bias=bias, mlp_bias=bool(hf.get("mlp_bias", False)))
