"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer sees no positions.

Those layers leave out the rotary embedding (NoPE, Kazemnejad et al. 2023; in a part of the layers, Yang et al. 2025) and
know the order of the tokens from the causal mask alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UnsupportedModel
from core.layers import Builder, RotaryEmbedding
from core.models.blocks import DecoderModel, DecoderSettings, read_decoder
from core.program import Value


class NoRotation(RotaryEmbedding):
    """Stands where a layer has a rotary embedding, and leaves queries and keys as they are."""

    def __init__(self) -> None:
        pass  # it has no frequencies

    def __call__(self, x: Value, angles: Value) -> Value:
        """[T, heads * D], as it came."""
        return x


class SmolLM3(DecoderModel):
    """The decoder of the Llama family; `rotates[i]` says whether layer i rotates its queries and keys."""

    def __init__(self, builder: Builder, settings: DecoderSettings, rotates: Sequence[bool]) -> None:
        super().__init__(builder, settings)
        for layer, rotated in zip(self.layers, rotates, strict=True):
            if not rotated:
                layer.attention.rope = NoRotation()


def build(builder: Builder, hf_config: Mapping[str, Any]) -> SmolLM3:
    """The model that `config.json` describes. Raises UnsupportedModel naming what does not fit."""
    hf = {"tie_word_embeddings": True, **hf_config}  # which SmolLM3's own file leaves out
    rotates = _rotates(hf)
    if not hf.get("layer_types"):  # where a window is on at all, the layers without positions have it
        hf["layer_types"] = ["full_attention" if rotated else "sliding_attention" for rotated in rotates]
    window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
    bias = bool(hf.get("attention_bias"))
    settings = read_decoder(hf, window=window, qkv_bias=bias, output_bias=bias, mlp_bias=bool(hf.get("mlp_bias")))
    return SmolLM3(builder, settings, rotates)


def _rotates(hf: Mapping[str, Any]) -> list[bool]:
    """For each layer whether it rotates: `no_rope_layers` has a 0 where not, else it is every `no_rope_layer_interval`th."""
    layers = int(hf.get("num_hidden_layers") or 0)
    given, interval = hf.get("no_rope_layers"), int(hf.get("no_rope_layer_interval") or 4)
    if given is None:
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if len(given) < layers:
        raise UnsupportedModel(f"no_rope_layers has {len(given)} entries for {layers} layers; each needs a 0 or a 1")
    return [bool(rotated) for rotated in given[:layers]]
