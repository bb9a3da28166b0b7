"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with a bias on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.models.blocks import DecoderSettings, read_decoder


def settings(hf: Mapping[str, Any]) -> DecoderSettings:
    """Layers slide from `max_window_layers` on where `use_sliding_window` is set."""
    return read_decoder(with_layer_types(hf), window=window_of(hf), qkv_bias=True)


def window_of(hf: Mapping[str, Any]) -> int | None:
    """The window, if the checkpoint turns it on."""
    return int(hf["sliding_window"]) if hf.get("use_sliding_window") and hf.get("sliding_window") else None


def with_layer_types(hf: Mapping[str, Any]) -> dict[str, Any]:
    """`hf` with the layer kinds spelt out, as older files leave them to `max_window_layers`."""
    layers, full = int(hf["num_hidden_layers"]), int(hf.get("max_window_layers") or 0)
    kinds = ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    return {**hf, "layer_types": hf.get("layer_types") or kinds}
