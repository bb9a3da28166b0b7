"""Matchers by llguidance (MIT; Rust, no dependencies): docs/decisions/009-structured-output.md says why."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec
import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from core.structured.base import Matcher
from core.structured.grammar import compiling, grammar_text, limits
from core.tokenization import Tokenizer, load_tokenizer
from core.types import StructuredOutputs

#: Grammars that stay compiled, those used last.
_MAX_KEPT = 64


class Matchers:
    """Makes the matchers of one model. Its tables are built for the first of them, beside the steps.

    Used from two threads: whoever plans steps asks what is ready, whoever carries them out starts matchers.
    """

    def __init__(self, tokenizer_path: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._path = tokenizer_path
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tables: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._compiled: OrderedDict[bytes, Future[LLMatcher]] = OrderedDict()  # by form, those used last behind

    def ready(self, form: StructuredOutputs) -> bool:
        """Whether `start` would not have to wait; begins to compile. One that cannot be compiled is ready to say so."""
        return self._grammar(form).done()

    def start(self, form: StructuredOutputs, output_token_ids: Sequence[int] = ()) -> Matcher:
        """A matcher behind the tokens that the answer has already. Where `ready` was not waited for, it compiles while
        its prompt is computed."""
        outputs, grammar = list(output_token_ids), self._grammar(form)
        if not grammar.done():
            return GuidanceMatcher(compiling(lambda: _started(grammar.result(), outputs)), self._vocab_size)
        started: Future[LLMatcher] = Future()
        try:
            started.set_result(_started(grammar.result(), outputs))
        except Exception as error:
            started.set_exception(error)
        return GuidanceMatcher(started, self._vocab_size)

    def _grammar(self, form: StructuredOutputs) -> Future[LLMatcher]:
        key = msgspec.json.encode(form)
        with self._lock:
            found = self._compiled.get(key)
            if found is None:
                found = self._compiled[key] = compiling(lambda: self._compile(grammar_text(form)))
                if len(self._compiled) > _MAX_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return found

    def _compile(self, grammar: str) -> LLMatcher:
        if self._tables is None:
            self._tables = _tables(load_tokenizer(self._path), self._vocab_size, self._eos_token_ids)
        return LLMatcher(self._tables, grammar, log_level=0, limits=limits())


def _started(grammar: LLMatcher, outputs: list[int]) -> LLMatcher:
    matcher = grammar.deep_copy()
    if outputs:
        matcher.consume_tokens(outputs)
    return matcher


class GuidanceMatcher(Matcher):
    """One answer's parser."""

    def __init__(self, matcher: Future[LLMatcher], vocab_size: int) -> None:
        self._future = matcher
        self._vocab_size = vocab_size
        self._words = np.zeros(-(-vocab_size // 32), np.int32)

    @property
    def failure(self) -> str | None:
        if (error := self._future.exception()) is not None:
            return f"its form could not be compiled: {error}"
        matcher = self._future.result()
        if matcher.is_error():
            return matcher.get_error().removesuffix("<non-verbose/>").strip()
        if matcher.is_stopped() and not matcher.is_accepting():
            return "the grammar allows nothing after what was written"
        return None

    def forbidden(self) -> npt.NDArray[np.bool_]:
        matcher = self._future.result()
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        bits = np.unpackbits(np.invert(self._words).view(np.uint8), count=self._vocab_size, bitorder="little")
        return bits.view(np.bool_)

    def advance(self, token_id: int) -> None:
        if self.failure is None and not self._future.result().is_stopped():
            self._future.result().consume_token(token_id)

    def take_forced(self, most: int) -> list[int]:
        """The text that is forced, in the tokens that the tokenizer has for it; what may join with the text behind it is
        left to be chosen."""
        if self.failure is not None or self._future.result().is_stopped():
            return []
        matcher = self._future.result()
        forced: list[int] = matcher.compute_ff_tokens()[:most]
        if forced:
            matcher.consume_tokens(forced)
        return forced


class _Vocabulary:
    """A tokenizer as the library reads it."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]  # b"" beyond its own: never allowed
        self.special_token_ids = sorted(token_id for token_id in tokenizer.special_ids if token_id < size)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text is encoded, not bytes")  # the library then asks with text
        return self._tokenizer.encode(text, add_special_tokens=False)


def _tables(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    vocabulary = TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, eos_token_ids[0]))
    return LLTokenizer(vocabulary, eos_token=eos_token_ids)
