"""Greedy tokens are transformers' own in float32; what the plugin cannot do is refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from core import LLM, SamplingParams
from core.errors import UnsupportedModel, WeightError
from core.layers import Builder
from core.program import OpProgram
from core.types import DType
from core_model_example.smollm3 import build

VOCAB, TOKENS = 320, 32
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)

#: What differs from the sizes below, of each checkpoint.
VARIANTS: dict[str, dict[str, Any]] = {
    "every-fourth": {},
    "listed": {"no_rope_layers": [0, 1, 1, 0, 1], "tie_word_embeddings": False, "attention_bias": True},
    "interval": {"no_rope_layer_interval": 2, "mlp_bias": True},
    "sliding": {"use_sliding_window": True, "sliding_window": 16},
}


def config(variant: str) -> SmolLM3Config:
    return SmolLM3Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=112, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.15,  # wide enough that the largest logit is never a matter of the last bits
        **VARIANTS[variant],
    )  # fmt: skip


def reference(variant: str) -> SmolLM3ForCausalLM:
    """transformers' model with random weights. Norms and biases are random too: ones and zeros would hide errors."""
    torch.manual_seed(0)
    model = SmolLM3ForCausalLM(config(variant)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def most_likely(model: SmolLM3ForCausalLM, prompt: list[int], output: list[int]) -> list[int]:
    """The most likely token after the prompt and after each of the output but the last, by transformers."""
    logits = model(torch.tensor([[*prompt, *output[:-1]]]), use_cache=False).logits
    found: list[int] = logits[0, len(prompt) - 1 :].argmax(-1).tolist()
    return found


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a variant's checkpoint, with a tokenizer of as many words as it has tokens."""

    def make(variant: str) -> Path:
        folder = tmp_path_factory.mktemp(variant)
        reference(variant).save_pretrained(folder)
        words = {f"w{i}": i for i in range(VOCAB)}
        Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
        return folder

    return make


def engine(model: Path, **options: Any) -> LLM:
    return LLM(str(model), platform="cpu", dtype="float32", progress=False, **options)


def generate(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]


def prompts() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (1, 15, 16, 17, 60)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_those_of_transformers_alone_and_together(checkpoint: Callable[[str], Path], variant: str) -> None:
    model = reference(variant)
    with engine(checkpoint(variant), enable_prefix_caching=False) as llm:
        together = generate(llm, prompts())
        assert [len(output) for output in together] == [TOKENS] * len(prompts())
        assert [most_likely(model, *pair) for pair in zip(prompts(), together, strict=True)] == together
        assert [generate(llm, [prompt])[0] for prompt in prompts()] == together


def test_it_matters_which_layers_rotate(checkpoint: Callable[[str], Path]) -> None:
    """Or the test above would pass for a model that rotates everywhere."""
    model = reference("every-fourth")
    for layer in model.model.layers:
        layer.self_attn.use_rope = 1
    with engine(checkpoint("every-fourth")) as llm:
        outputs = generate(llm, prompts())
    assert [most_likely(model, *pair) for pair in zip(prompts(), outputs, strict=True)] != outputs


def test_a_missing_tensor_is_named(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("every-fourth")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.self_attn.k_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightError, match=r"model\.layers\.3\.self_attn\.k_proj\.weight"):
        engine(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for 5 layers"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_an_unsupported_setting_is_named(change: dict[str, Any], words: str) -> None:
    hf = {key: value for key, value in {**config("every-fourth").to_dict(), **change}.items() if value is not None}
    with pytest.raises(UnsupportedModel, match=words):
        build(Builder(OpProgram(), DType.FLOAT32), hf)


def test_without_the_plugin_the_architecture_is_unknown(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModel, match="'SmolLM3ForCausalLM' is not implemented"):
        engine(checkpoint("every-fourth"), plugins="none")
