"""Mistral (Jiang et al. 2023): Llama with a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.models.blocks import DecoderSettings, read_decoder


def settings(hf: Mapping[str, Any]) -> DecoderSettings:
    """`sliding_window` may be null: later releases attend in full."""
    window = hf.get("sliding_window")
    return read_decoder(hf, window=int(window) if window else None)
