"""Prompt tokens that wait for their first token, over all requests of one frontend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.errors import QueueFull


class PromptQueue:
    """How many wait, and at most how many may: 0 is no limit. One request alone may have more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.tokens = 0

    @contextmanager
    def waiting(self, tokens: int) -> Iterator[Callable[[], None]]:
        """So many tokens wait inside, until what is given is called. Raises QueueFull."""
        if 0 < self._limit < self.tokens + tokens and self.tokens:
            message = f"{self.tokens} prompt tokens are waiting already, and {tokens} more are over the limit"
            raise QueueFull(f"{message} (--max-queued-tokens {self._limit})")
        self.tokens += tokens
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self.tokens -= tokens

        try:
            yield leave
        finally:
            leave()
