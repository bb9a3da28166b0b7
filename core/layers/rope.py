"""Rotary position embedding and its scalings.

Frequencies follow RoFormer (Su et al. 2021); `linear` is position interpolation (Chen et al. 2023), `llama3` the
scheme of the Llama 3.1 release, `yarn` YaRN (Peng et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import ops
from core.errors import UnsupportedModel
from core.layers.base import Builder
from core.program import Value


@dataclass(frozen=True)
class RopeConfig:
    """`head_dim` dimensions rotate (fewer where `partial` < 1); `scaling` is the checkpoint's own dict."""

    head_dim: int
    theta: float
    scaling: Mapping[str, Any]
    max_positions: int
    partial: float = 1.0

    @classmethod
    def read(cls, hf: Mapping[str, Any], head_dim: int) -> RopeConfig:
        """From `config.json`, where it is `rope_parameters` or, in older files, `rope_theta` and `rope_scaling`."""
        scaling = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
        theta = scaling.get("rope_theta") or hf.get("rope_theta") or 10000.0
        partial = scaling.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
        return cls(head_dim, float(theta), scaling, int(hf.get("max_position_embeddings") or 2048), float(partial))


class RotaryEmbedding:
    """Rotates heads by angles that are computed once a step and shared by all layers."""

    def __init__(self, builder: Builder, config: RopeConfig) -> None:
        frequencies, self.scale = inverse_frequencies(config)
        self.inv_freq = builder.constant("rope.inv_freq", frequencies)
        self.head_dim = config.head_dim

    def angles(self, positions: Value) -> Value:
        """[T] int32 -> float32 [T, rotated dims], cosines then sines."""
        return ops.rope_angles(positions, self.inv_freq, scale=self.scale)

    def __call__(self, x: Value, angles: Value) -> Value:
        """[T, heads * D] -> the same shape."""
        return ops.rope(x, angles, head_dim=self.head_dim)


def inverse_frequencies(config: RopeConfig) -> tuple[list[float], float]:
    """Radians per position of each rotated pair, and the factor on cos and sin."""
    dims = int(config.head_dim * config.partial)
    plain = [config.theta ** (-i / dims) for i in range(0, dims, 2)]
    kind = config.scaling.get("rope_type") or config.scaling.get("type") or "default"
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return [f / float(config.scaling["factor"]) for f in plain], 1.0
    if kind == "llama3":
        return _llama3(plain, config.scaling), 1.0
    if kind == "yarn":
        return _yarn(plain, config, dims)
    raise UnsupportedModel(f"rope_scaling type {kind!r} is not implemented; known: default, linear, llama3, yarn")


def _llama3(plain: Sequence[float], scaling: Mapping[str, Any]) -> list[float]:
    """Slow waves are divided by the factor, fast ones kept, those between blended."""
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])

    def scaled(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            return frequency
        if wavelength > original / low:
            return frequency / factor
        blend = (original / wavelength - low) / (high - low)
        return (1 - blend) * frequency / factor + blend * frequency

    return [scaled(frequency) for frequency in plain]


def _yarn(plain: Sequence[float], config: RopeConfig, dims: int) -> tuple[list[float], float]:
    """Interpolated where a wave turns fewer than beta_slow times in the original context, kept above beta_fast."""
    scaling = config.scaling
    original = float(scaling.get("original_max_position_embeddings") or config.max_positions)
    factor = float(scaling.get("factor") or config.max_positions / original)
    fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)

    def dimension(rotations: float) -> float:
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    span = max(high - low, 0.001)
    frequencies = []
    for i, frequency in enumerate(plain):
        interpolate = min(max((i - low) / span, 0.0), 1.0)
        frequencies.append(frequency / factor * interpolate + frequency * (1 - interpolate))
    return frequencies, _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    def mscale(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(float(scaling["mscale"])) / mscale(float(scaling["mscale_all_dim"]))
    return mscale(1.0)
