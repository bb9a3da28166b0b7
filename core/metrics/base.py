"""What can be measured, whoever collects it."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from core.types import EngineStats


@dataclass(frozen=True)
class FinishedChoice:
    """One choice of one request, when it ends. Times are seconds from the request's arrival."""

    reason: str
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    seconds_per_token: float | None  # after the first; None for answers of one token or none


class Metrics(abc.ABC):
    """Takes events, one call each, from one thread; gives them out in a form that someone reads."""

    @abc.abstractmethod
    def first_token(self, seconds: float) -> None:
        """A choice's first token came this long after its request."""

    @abc.abstractmethod
    def next_token(self, seconds: float) -> None:
        """A choice's tokens came this long after the ones before."""

    @abc.abstractmethod
    def finished(self, choice: FinishedChoice) -> None:
        """A choice ended."""

    @abc.abstractmethod
    def render(self, stats: EngineStats | None) -> tuple[bytes, str]:
        """Everything, with the engine's figures where there are any: body and content type."""
