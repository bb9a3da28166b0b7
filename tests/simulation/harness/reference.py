"""What the simulated model says, written down a second time: the whole answer to a request, from the request alone."""

from __future__ import annotations

import struct
import zlib

from core.types import EngineRequest, FinishReason
from harness.scenario import EOS, VOCAB

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ORDINARY = [token for token in range(VOCAB) if token != EOS]  # the simulated model never ends by itself


class Answer:
    """All that one request can be given: its tokens without end, and where it ends if nothing interrupts it."""

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self._key = _key(request)
        self._sequence = list(request.prompt_token_ids)
        self.tokens, self.reason = self._whole()

    def at(self, position: int) -> int:
        """The token at `position` of the sequence. Steps planned ahead compute beyond a stop token, never beyond the
        longest answer."""
        while len(self._sequence) <= position:
            self._sequence.append(_ORDINARY[_mix((self._key + len(self._sequence) * _GOLDEN) & _MASK) % len(_ORDINARY)])
        return self._sequence[position]

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer at most."""
        assert self.request.params.max_tokens is not None
        return len(self.request.prompt_token_ids) + self.request.params.max_tokens

    def _whole(self) -> tuple[list[int], FinishReason]:
        params, start = self.request.params, len(self.request.prompt_token_ids)
        tokens: list[int] = []
        while start + len(tokens) < self.longest:
            tokens.append(self.at(start + len(tokens)))
            if tokens[-1] in params.stop_token_ids and len(tokens) >= params.min_tokens:
                return tokens, "stop"
        return tokens, "length"


def _key(request: EngineRequest) -> int:
    """Greedy requests are keyed by their prompt, others by seed and choice."""
    if request.params.greedy:
        prompt = request.prompt_token_ids
        return _mix(_mix(zlib.crc32(struct.pack(f"<{len(prompt)}i", *prompt))))
    return _mix(_mix((request.params.seed or 0) & _MASK) + request.choice_index)


def _mix(x: int) -> int:
    """SplitMix64 (Steele, Lea & Flood 2014)."""
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
