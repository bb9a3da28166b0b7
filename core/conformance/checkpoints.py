"""Tiny random models of every architecture, with a tokenizer, made here: nothing is downloaded, every run is the same."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from core.config import parse_options, resolve
from core.models.registry import architectures
from core.recording import RecordedModel, record_model

SPECIAL = ("<unk>", "<s>", "</s>")
EOS = 2
#: One token for each printable ASCII character but `<`, which begins the special ones: so a text tells its tokens.
CHARACTERS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "<")
VOCAB = len(SPECIAL) + len(CHARACTERS)
MAX_POSITIONS = 256
#: Wide enough that the largest logit is seldom a matter of the last bits.
_STD = 0.15

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = 24

#: Family -> architecture, and what differs from the sizes above. Every architecture of the core has at least one.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama3": ("LlamaForCausalLM", {"rope_scaling": _LLAMA3_ROPE, "tie_word_embeddings": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
}


def families() -> dict[str, tuple[str, dict[str, Any]]]:
    """FAMILIES, and one for each architecture of the core that it does not know yet."""
    known = {architecture for architecture, _ in FAMILIES.values()}
    return {**FAMILIES, **{name: (name, {}) for name in architectures({}) if name not in known}}


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, and its tensors as they are in the file, by name."""

    path: Path
    tensors: Mapping[str, Tensor]


def write(family: str, directory: Path, **changes: Any) -> Checkpoint:
    """Make the family's checkpoint in `directory`; `changes` go into its config.json."""
    architecture, differences = families()[family]
    directory.mkdir(parents=True, exist_ok=True)
    config = {**_SIZES, "architectures": [architecture], **differences, **changes}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    _tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}')
    tensors = _tensors(record_model(resolve(str(directory), parse_options({"load_format": "dummy"}))))
    save_file(tensors, str(directory / "model.safetensors"))
    return Checkpoint(directory, tensors)


def _tensors(model: RecordedModel) -> dict[str, Tensor]:
    """Every tensor that the model reads, random by its name. Norms are around one, biases are not zero: neither the one
    nor the other could hide that it is left out."""
    tensors = {}
    for parameter in model.parameters:
        for source in parameter.sources:
            shape = (source.rows, *parameter.value.resolve(0, 0)[1:])
            generator = torch.Generator().manual_seed(zlib.crc32(source.name.encode()))
            random = torch.randn(shape, generator=generator)
            is_norm = len(shape) == 1 and "norm" in source.name
            tensors[source.name] = 1.0 + 0.3 * random if is_norm else _STD * random
    return tensors


def _tokenizer() -> tokenizers.Tokenizer:
    """Byte level, without merges. Characters outside of ASCII are <unk>."""
    symbol_of = {" ": "\u0120"}  # how byte-level vocabularies write a space
    vocab = {token: index for index, token in enumerate(SPECIAL)}
    vocab.update({symbol_of.get(c, c): len(SPECIAL) + i for i, c in enumerate(CHARACTERS)})
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def token_ids(text: str) -> list[int]:
    """The tokens of an answer by its text, special tokens shown."""
    ids = []
    while text:
        special = next((token for token in SPECIAL if text.startswith(token)), None)
        ids.append(SPECIAL.index(special) if special else len(SPECIAL) + CHARACTERS.index(text[0]))
        text = text[len(special) if special else 1 :]
    return ids


def prompts(count: int, longest: int = 40, *, seed: int = 0) -> list[list[int]]:
    """Random prompts of 1 to `longest` tokens, the first of them of both lengths; no special token among them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, longest, *torch.randint(2, longest, (count,), generator=generator).tolist()][:count]
    return [torch.randint(len(SPECIAL), VOCAB, (n,), generator=generator).tolist() for n in lengths]
