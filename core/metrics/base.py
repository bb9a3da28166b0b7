"""What a frontend measures of its requests, and who may be told of it."""

from __future__ import annotations

import abc
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FinishedChoice:
    """One choice of one request, when it ends, however it does. Times are seconds from the request's arrival.

    `reason` is the engine's ("stop", "length", "deadline", "error"), or "abort" where the client left first.
    """

    request_id: str  # the answer's id, which the client has too
    index: int  # of the choice, over all prompts of the request
    reason: str
    prompt_tokens: int
    cached_tokens: int  # of the prompt's, those whose KV was found
    generated_tokens: int
    max_tokens: int
    seconds: float
    first_token_seconds: float | None  # None without a token
    seconds_per_token: float | None  # after the first; None for answers of one token or none
    queue_seconds: float | None = None  # until it first ran; None without a token
    num_choices: int = 1  # that the request asked for, of each prompt


class MetricsSink(abc.ABC):
    """Is told of each event as it happens, on the thread that streams the answers: what takes time is for another one.

    Whatever it raises is logged and counted, and changes no answer.
    """

    @abc.abstractmethod
    def first_token(self, seconds: float) -> None:
        """A choice's first token came this long after its request."""

    @abc.abstractmethod
    def next_token(self, seconds: float) -> None:
        """A choice's tokens came this long after the ones before."""

    @abc.abstractmethod
    def finished(self, choice: FinishedChoice) -> None:
        """A choice ended."""

    def close(self) -> None:  # noqa: B027  # a sink that keeps nothing has nothing to do
        """The frontend ends: send what is still kept."""
