"""From the engine's token deltas to text: detokenized, and cut at stop strings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

import msgspec

from core.tokenization.detokenizer import IncrementalDetokenizer
from core.tokenization.tokenizer import Tokenizer
from core.types import EngineRequest, FinishReason, RequestDelta, TokenLogprobs


class ChoiceDelta(msgspec.Struct, frozen=True):
    """What is new of one choice. `logprobs` go with `token_ids`; `stop_reason` is the stop token or string."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    error: str | None = None  # why, where the finish reason is `error`
    queue_seconds: float = 0.0
    pooled: bytes | None = None  # of a request that pools, in place of text and tokens
    prompt_logprobs: list[TokenLogprobs] | None = None  # with the first token: see `core.types.RequestDelta`


_Delta = TypeVar("_Delta", RequestDelta, ChoiceDelta)


def joined(deltas: Sequence[_Delta]) -> _Delta:
    """Successive deltas of one request as one; of a choice's, the last one's text (`joined_choice` has it all)."""
    first, last = deltas[0], deltas[-1]
    if len(deltas) == 1:
        return last
    has_logprobs = any(delta.logprobs is not None for delta in deltas)
    return msgspec.structs.replace(
        last,
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=[entry for delta in deltas for entry in delta.logprobs or ()] if has_logprobs else None,
        num_cached_tokens=max(delta.num_cached_tokens for delta in deltas),
        queue_seconds=max(delta.queue_seconds for delta in deltas),
        prompt_logprobs=first.prompt_logprobs,
    )


def joined_choice(deltas: Sequence[ChoiceDelta]) -> ChoiceDelta:
    """Successive deltas of one choice as one, text and all."""
    return msgspec.structs.replace(joined(deltas), text="".join(delta.text for delta in deltas))


class TokenSource(Protocol):
    """Where deltas come from: an engine client."""

    def generate(self, request: EngineRequest) -> AsyncGenerator[RequestDelta, None]:
        """Deltas until one with a finish reason; closing it aborts the request."""
        ...


class Choice:
    """The text side of one engine request."""

    def __init__(self, tokenizer: Tokenizer, request: EngineRequest) -> None:
        params = request.params
        self._index = request.choice_index
        self._may_stop = bool(params.stop)
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
            prompt_token_ids=request.prompt_token_ids[-8:],
            stop=params.stop,
            include_stop_str_in_output=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )
        self.finished = False

    def push(self, delta: RequestDelta) -> ChoiceDelta:
        """The delta as text. `finished` turns true at a stop string too: the engine does not know of those.

        What was generated after it is no part of the answer.
        """
        text, num_tokens = self._text(delta.token_ids)
        stop = self._detokenizer.stop_string
        reason: FinishReason | None = delta.finish_reason
        if stop is not None:
            reason = "stop"
        elif reason is not None:
            text += self._detokenizer.flush()
        self.finished = reason is not None
        return ChoiceDelta(
            index=self._index,
            text=text,
            token_ids=delta.token_ids[:num_tokens],
            logprobs=None if delta.logprobs is None else delta.logprobs[:num_tokens],
            finish_reason=reason,
            stop_reason=stop if stop is not None else delta.stop_reason,
            num_cached_tokens=delta.num_cached_tokens,
            error=delta.error,
            queue_seconds=delta.queue_seconds,
            pooled=delta.pooled,
            prompt_logprobs=delta.prompt_logprobs,
        )

    def _text(self, token_ids: list[int]) -> tuple[str, int]:
        """The text that is certain now, and how many of the tokens are the answer's."""
        if not self._may_stop or len(token_ids) < 2:
            return self._detokenizer.push(token_ids), len(token_ids)
        text = ""
        for count, token_id in enumerate(token_ids, 1):
            text += self._detokenizer.push([token_id])
            if self._detokenizer.stop_string is not None:
                return text, count
        return text, len(token_ids)


async def generate(
    source: TokenSource, tokenizer: Tokenizer, request: EngineRequest
) -> AsyncGenerator[ChoiceDelta, None]:
    """Deltas of one choice as they come, to the one with a finish reason. Closing it aborts the request."""
    choice = Choice(tokenizer, request)
    async with aclosing(source.generate(request)) as deltas:
        async for delta in deltas:
            yield choice.push(delta)
            if choice.finished:
                return
