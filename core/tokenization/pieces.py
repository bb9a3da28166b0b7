"""What each token decodes to, as bytes.

A tokenizer's decoder joins pieces into text. The decoders that language models use turn every token into bytes that do
not depend on the tokens around it, but for the first token of a text. So decoding is a table look-up and a UTF-8
decoder, which is exact however the tokens arrive, and costs the same for the thousandth token as for the first.

Three kinds are told apart:

- byte level (GPT-2, Llama 3, Qwen …): each character of a token stands for a byte (`byte_alphabet`);
- sentencepiece (Llama 2, Mistral, Gemma …): text with replacements, `<0xE4>` for single bytes, and possibly one space
  stripped at the beginning of a text;
- by token (WordPiece, Metaspace, none): the library is asked for each token, alone and after another one.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import tokenizers

from core.errors import InvalidRequest, TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The 256 characters that stand for the bytes in a byte-level vocabulary (GPT-2's `bytes_to_unicode`).

    Printable Latin-1 bytes stand for themselves; the others, in order, are U+0100 and up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in sorted(printable)} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Pieces:
    """The bytes of each token of a tokenizer. The table fills as tokens are met; safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._table: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """The bytes that token `token_id` adds in the middle of a text; none for an id outside the vocabulary."""
        piece = self._table.get(token_id)
        if piece is None:
            token = token_at(self._backend, token_id)
            piece = self._table[token_id] = b"" if token is None else self._decode(token_id, token)
        return piece

    def first(self, token_id: int) -> bytes:
        """The bytes that token `token_id` gives as the first of a text."""
        return self[token_id]

    def _decode(self, token_id: int, token: str) -> bytes:
        raise NotImplementedError


class ByteLevelPieces(Pieces):
    """Each character is a byte; a token with any other character (an added one) is plain text."""

    def _decode(self, token_id: int, token: str) -> bytes:
        alphabet = byte_alphabet()
        try:
            return bytes([alphabet[char] for char in token])
        except KeyError:
            return token.encode()


class SentencePiecePieces(Pieces):
    """Replacements, byte fallback, and a leading character to strip from the whole text."""

    def __init__(self, backend: tokenizers.Tokenizer, replacements: list[tuple[str, str]], strip: str) -> None:
        super().__init__(backend)
        self._replacements = replacements
        self._strip = strip.encode()

    def first(self, token_id: int) -> bytes:
        return self[token_id].removeprefix(self._strip)

    def _decode(self, token_id: int, token: str) -> bytes:
        for old, new in self._replacements:
            token = token.replace(old, new)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.encode()


class ByTokenPieces(Pieces):
    """Asks the library: alone for the first token, after an anchor token for the others."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__(backend)
        vocabulary = backend.get_vocab()
        anchor = next((id for token, id in vocabulary.items() if token.isascii() and token.isalnum()), None)
        if anchor is None:
            raise TokenizerError("the vocabulary has no token of letters: it cannot be decoded token by token")
        self._anchor = anchor
        self._anchor_text = backend.decode([self._anchor], skip_special_tokens=False)

    def first(self, token_id: int) -> bytes:
        return self._backend.decode([token_id], skip_special_tokens=False).encode()

    def _decode(self, token_id: int, token: str) -> bytes:
        text = self._backend.decode([self._anchor, token_id], skip_special_tokens=False)
        return text.removeprefix(self._anchor_text).encode()


def token_at(backend: tokenizers.Tokenizer, token_id: int) -> str | None:
    """The vocabulary's spelling of a token, None outside the vocabulary. Raises `InvalidRequest` for what is no id."""
    try:
        return backend.id_to_token(token_id)
    except (OverflowError, TypeError) as error:
        raise InvalidRequest(f"{token_id!r} is not a token id: give an integer >= 0", param="prompt") from error


def pieces_of(backend: tokenizers.Tokenizer) -> Pieces:
    """The table for this tokenizer's decoder. Raises `TokenizerError` for a decoder whose pieces depend on later ones."""
    state: dict[str, Any] = {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = state["decoders"] if state.get("type") == "Sequence" else [state] if state else []
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelPieces(backend)
    if kinds in ([], ["WordPiece"], ["Metaspace"]):
        return ByTokenPieces(backend)
    replacements, others = _split_replacements(steps)
    match [step["type"] for step in others]:
        case ["ByteFallback", "Fuse"]:
            return SentencePiecePieces(backend, replacements, "")
        case ["ByteFallback", "Fuse", "Strip"] if (others[2]["start"], others[2]["stop"]) == (1, 0):
            return SentencePiecePieces(backend, replacements, others[2]["content"])
    raise TokenizerError(
        f"decoder {' + '.join(kinds)} is not supported: it must be ByteLevel, WordPiece, Metaspace, or sentencepiece's "
        "Replace + ByteFallback + Fuse (+ Strip of one leading character)"
    )


def _split_replacements(steps: list[dict[str, Any]]) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The plain replacements that a sequence begins with, and the steps after them."""
    replacements: list[tuple[str, str]] = []
    for i, step in enumerate(steps):
        if step["type"] != "Replace" or "String" not in step["pattern"]:
            return replacements, steps[i:]
        replacements.append((step["pattern"]["String"], step["content"]))
    return replacements, []
