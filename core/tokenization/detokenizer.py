"""Tokens to text as they come: never half a character, never the beginning of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from core.tokenization.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """The text of one answer, token by token.

    What `push` and `flush` return, concatenated, is what `Tokenizer.decode` gives for all the tokens (after a prompt:
    for prompt and tokens, less the prompt's text), cut at the first stop string. The work per token does not grow with
    the answer.

    `prompt_token_ids` (the last few suffice) only says whether the answer begins a text, where sentencepiece models
    drop a leading space. Of several stop strings the one that is complete first wins, the longest if two end together.
    One that ends within the first `min_tokens` tokens is ignored.

    `spaces_between_special_tokens`: a special token that is shown has a space between it and what is next to it, as
    transformers' slow tokenizers write them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = False,
        prompt_token_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.stop_string: str | None = None  # the one that ended the text
        self._pieces = tokenizer.pieces
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._spaced = tokenizer.special_ids - self._skipped if spaces_between_special_tokens else frozenset()
        self._after_special: bool | None = None  # whether the last token was one; None: there is none yet
        self._at_start = not any(self._pieces[i] for i in reversed(prompt_token_ids) if i not in self._skipped)
        self._utf8 = _Utf8Decoder("replace")
        self._stop = _StopMatcher(tuple(stop), include_stop_str_in_output) if stop else None
        self._unchecked_tokens = min_tokens
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """All that was returned so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now that these tokens follow; empty once a stop string was met."""
        if self.stop_string is not None:
            return ""
        if self._stop is None:
            return self._keep(self._utf8.decode(self._bytes(token_ids)))
        ready = ""
        if self._unchecked_tokens:
            unchecked, token_ids = token_ids[: self._unchecked_tokens], token_ids[self._unchecked_tokens :]
            self._unchecked_tokens -= len(unchecked)
            ready = self._stop.pass_over(self._utf8.decode(self._bytes(unchecked)))
        return self._keep(ready + self._checked(self._utf8.decode(self._bytes(token_ids))))

    def flush(self) -> str:
        """The rest, once no token will follow: text held back, and U+FFFD for a character that stayed incomplete."""
        if self.stop_string is not None:
            return ""
        rest = self._utf8.decode(b"", final=True)
        if self._stop is None:
            return self._keep(rest)
        text = self._stop.pass_over(rest) if self._unchecked_tokens else self._checked(rest)
        return self._keep(text + ("" if self.stop_string is not None else self._stop.release()))

    def _bytes(self, token_ids: Sequence[int]) -> bytes:
        if self._spaced:
            return b"".join(self._with_spaces(token_ids))
        if self._at_start:
            return b"".join(self._from_start(token_ids))
        return b"".join([self._pieces[i] for i in token_ids if i not in self._skipped])

    def _from_start(self, token_ids: Sequence[int]) -> Iterator[bytes]:
        for token_id in token_ids:
            if token_id in self._skipped or not (piece := self._pieces[token_id]):
                continue
            yield self._pieces.first(token_id) if self._at_start else piece
            self._at_start = False

    def _with_spaces(self, token_ids: Sequence[int]) -> Iterator[bytes]:
        for token_id in token_ids:
            piece = b"".join(self._from_start([token_id]))
            special = token_id in self._spaced
            if piece and self._after_special is not None and (special or self._after_special):
                yield b" "
            if piece:
                self._after_special = special
            yield piece

    def _checked(self, text: str) -> str:
        assert self._stop is not None
        ready, self.stop_string = self._stop.feed(text)
        return ready

    def _keep(self, text: str) -> str:
        if text:
            self._parts.append(text)
        return text


class _StopMatcher:
    """Finds stop strings in a stream, holding back only what may be the beginning of one."""

    def __init__(self, stop: tuple[str, ...], include: bool) -> None:
        self._stop = stop
        self._include = include
        self._first_chars = frozenset(string[0] for string in stop)
        self._longest = max(map(len, stop))
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is certain after `text` came, and the stop string that ends it, if one does."""
        if not self._held and self._first_chars.isdisjoint(text):
            return text, None
        checked = len(self._held)  # a match must end beyond it: what is held was looked at before
        self._held += text
        found = [
            (at + len(string), -len(string), string)
            for string in self._stop
            if (at := self._held.find(string, max(0, checked - len(string) + 1))) >= 0
        ]
        if not found:
            return self._take(self._begin_of_match()), None
        end, minus_length, string = min(found)
        return self._take(end if self._include else end + minus_length), string

    def pass_over(self, text: str) -> str:
        """Like `feed`, where strings that end within `text` do not count; one that begins in it still does."""
        self._held += text
        return self._take(self._begin_of_match())

    def release(self) -> str:
        """What was held back."""
        return self._take(len(self._held))

    def _begin_of_match(self) -> int:
        """Where the longest end of the held text starts that is the beginning of a stop string."""
        held = self._held
        for at in range(max(0, len(held) - self._longest + 1), len(held)):
            if held[at] in self._first_chars and any(string.startswith(held[at:]) for string in self._stop):
                return at
        return len(held)

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken
