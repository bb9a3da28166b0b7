"""Settings and rotary frequencies are read as transformers reads them; what is not implemented says so."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from core.errors import PluginLoadError, UnsupportedModel
from core.extensions import Extension
from core.layers.rope import RopeConfig, inverse_frequencies
from core.models.registry import architectures, model_builder, settings_reader

HF: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("family", ["llama3", "llama-yarn", "llama-linear"])
def test_scaled_frequencies_equal_transformers(family: str) -> None:
    config = tiny_models.config(family)
    expected, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu")
    rope = RopeConfig.read(config.to_dict(), config.hidden_size // config.num_attention_heads)
    found, scale = inverse_frequencies(rope)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-6, atol=0)
    assert scale == pytest.approx(factor)


def test_older_and_newer_spelling_of_rope_agree() -> None:
    old = RopeConfig.read({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 16)
    new = RopeConfig.read({"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}, 16)
    assert inverse_frequencies(old) == inverse_frequencies(new)


def test_unknown_scaling_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"longrope.*llama3"):
        inverse_frequencies(RopeConfig.read({"rope_scaling": {"rope_type": "longrope"}}, 16))


@pytest.mark.parametrize(
    ("architecture", "extra", "windows"),
    [
        ("LlamaForCausalLM", {"sliding_window": 8}, (None, None, None, None)),
        ("MistralForCausalLM", {"sliding_window": 8}, (8, 8, 8, 8)),
        ("MistralForCausalLM", {"sliding_window": None}, (None,) * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "use_sliding_window": False}, (None,) * 4),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 8),
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (8, None, 8, None),
        ),
    ],
)
def test_windows(architecture: str, extra: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert settings_reader(architecture)({**HF, **extra}).windows == windows


def test_every_registered_architecture_can_be_read() -> None:
    for name in architectures({}):
        assert settings_reader(name)(HF).num_layers == 4


def test_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UnsupportedModel, match="did you mean 'LlamaForCausalLM'"):
        model_builder("LlamaForCausalLm", {})


@pytest.mark.parametrize(
    ("change", "message"), [({"hidden_act": "gelu"}, "gelu"), ({"hidden_size": None}, "hidden_size")]
)
def test_unsupported_settings_are_named(change: dict[str, Any], message: str) -> None:
    hf = {key: value for key, value in {**HF, **change}.items() if value is not None}
    with pytest.raises(UnsupportedModel, match=message):
        settings_reader("LlamaForCausalLM")(hf)


def test_a_plugin_cannot_take_an_architecture_of_the_core() -> None:
    taken = Extension(
        kind="models", name="LlamaForCausalLM", target="json:loads", plugin="x", distribution="acme-x 1.0"
    )
    with pytest.raises(
        PluginLoadError, match=r"'LlamaForCausalLM' of plugin 'x' \(acme-x 1\.0\) has the name of one of"
    ):
        model_builder("Qwen2ForCausalLM", {"LlamaForCausalLM": taken})
