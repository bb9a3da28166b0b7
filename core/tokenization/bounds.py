"""How much text one token can stand for: what bounds a prompt's tokens from below before it is tokenized."""

from __future__ import annotations

import json
from typing import Any

import tokenizers

from core.tokenization.pieces import byte_alphabet

#: No character decomposes canonically into more than this many (Unicode 15), so NFC shortens no text further.
NFC_MAX_SHRINK = 4

_KEEPS_LENGTH = {"Prepend"}
_KEEPS_TEXT = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"}
#: Control characters, bytes that UTF-8 never has, and those that begin planes without assigned characters.
_RARE_BYTES = frozenset({*range(0x20), 0x7F, 0xC0, 0xC1, *range(0xF1, 0x100)})


def max_token_chars(backend: tokenizers.Tokenizer) -> int | None:
    """The most characters of text that one token can stand for, None where there is no bound.

    There is none where text can vanish or melt together: a normalizer that drops or strips, a pre-tokenizer that
    removes, unknown characters fused into one token, special tokens that swallow the spaces around them. Control
    characters that a byte-level vocabulary lacks, and so drops, are left out of account.
    """
    shrink = _shrink_of(_steps(backend.normalizer, "normalizers"))
    pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
    if shrink is None or not all(_keeps_text(step) for step in pre_tokenizers):
        return None
    if any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return None
    vocabulary = backend.get_vocab()
    if any(step["type"] == "ByteLevel" for step in pre_tokenizers):
        complete = all(char in vocabulary for char, byte in byte_alphabet().items() if byte not in _RARE_BYTES)
    else:
        fallback = getattr(backend.model, "byte_fallback", False)
        complete = fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    return shrink * max(map(len, vocabulary)) if complete else None


def _steps(component: Any, key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, as their JSON."""
    if component is None:
        return []
    state: dict[str, Any] = json.loads(component.__getstate__())
    steps: list[dict[str, Any]] = state[key] if state["type"] == "Sequence" else [state]
    return steps


def _shrink_of(normalizers: list[dict[str, Any]]) -> int | None:
    """By what factor normalizers may shorten a text, None where that has no bound."""
    shrink = 1
    for step in normalizers:
        kind = step["type"]
        one_for_some = kind == "Replace" and len(step["pattern"].get("String", "")) == 1 and step["content"]
        if kind == "NFC":
            shrink *= NFC_MAX_SHRINK
        elif kind not in _KEEPS_LENGTH and not one_for_some:
            return None
    return shrink


def _keeps_text(pre_tokenizer: dict[str, Any]) -> bool:
    return pre_tokenizer["type"] in _KEEPS_TEXT and pre_tokenizer.get("behavior") != "Removed"
