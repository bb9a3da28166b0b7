"""Fill in the middle (Bavarian et al. 2022): a prompt from what stands before a gap and what stands behind it."""

from __future__ import annotations

from typing import NamedTuple

from core.errors import InvalidRequest
from core.tokenization.tokenizer import Tokenizer


class _Infill(NamedTuple):
    """How a family of models marks the parts: with special tokens, which must be in the vocabulary."""

    tokens: tuple[str, ...]
    suffix_first: bool = False

    def prompt(self, before: str, after: str) -> str:
        if self.suffix_first:
            return f"{self.tokens[0]}{after}{self.tokens[1]}{before}"
        return f"{self.tokens[0]}{before}{self.tokens[1]}{after}{self.tokens[2]}"


_KNOWN = (
    _Infill(("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")),  # Qwen, CodeGemma
    _Infill(("<fim_prefix>", "<fim_suffix>", "<fim_middle>")),  # StarCoder, Granite
    _Infill(("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")),  # noqa: RUF001 - DeepSeek spells them with this bar
    _Infill(("[SUFFIX]", "[PREFIX]"), suffix_first=True),  # Codestral
)


def infill_prompt(tokenizer: Tokenizer, before: str, after: str) -> str:
    """The prompt whose completion stands between the two. Raises InvalidRequest where the model has no tokens for it."""
    for known in _KNOWN:
        if all(tokenizer.token_id(token) is not None for token in known.tokens):
            return known.prompt(before, after)
    message = "suffix: this model's tokenizer has no tokens for filling in the middle; leave it out"
    raise InvalidRequest(message, param="suffix", code="unsupported")
