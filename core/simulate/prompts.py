"""Prompts of the lengths that a trace gives: random tokens, the same ones for the same seed and the same names."""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np

from core.simulate.trace import TraceRequest

#: Shared pieces that are kept.
_PIECES = 1024


class PromptMaker:
    """Makes each prompt when it is asked for: a trace's prompts together may be larger than memory."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size = vocab_size
        self._seed = seed
        self._piece = lru_cache(_PIECES)(self._named)

    def tokens(self, request: TraceRequest) -> list[int]:
        """The prompt's token ids: its own, or its shared pieces and then tokens of its own."""
        if request.token_ids is not None:
            return request.token_ids
        tokens: list[int] = []
        for name, count in request.shared:
            tokens += self._piece(name, count)
        tokens += self._draw(request.prompt_tokens - len(tokens), 0, request.line)
        return tokens

    def _named(self, name: str, count: int) -> list[int]:
        return self._draw(count, 1, zlib.crc32(name.encode()))

    def _draw(self, count: int, kind: int, key: int) -> list[int]:
        source = np.random.Generator(np.random.SFC64([self._seed, kind, key]))
        drawn: list[int] = source.integers(self._vocab_size, size=count).tolist()
        return drawn
