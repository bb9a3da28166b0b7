"""How deltas of several choices are brought together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from core.engine.output import ChoiceDelta
from core.server.generation import _merged
from core.types import TokenLogprobs


def delta(text: str, *, reason: str | None = None, logprob: float | None = None) -> ChoiceDelta:
    logprobs = None if logprob is None else [TokenLogprobs(logprob, 1)]
    return ChoiceDelta(0, text, [ord(char) for char in text], logprobs, reason)


class Source:
    """Deltas, with a pause wherever there is a None; knows whether it was closed."""

    def __init__(self, *steps: ChoiceDelta | Exception | None) -> None:
        self.closed = False
        self._steps = steps

    async def deltas(self) -> AsyncGenerator[ChoiceDelta, None]:
        try:
            for step in self._steps:
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    await asyncio.sleep(0.01)
                else:
                    yield step
        finally:
            self.closed = True


async def test_what_is_there_at_once_is_one_batch() -> None:
    one = Source(delta("a"), delta("b"), None, delta("c", reason="stop"))
    other = Source(delta("x", reason="length"))
    batches = [
        {position: (each.text, each.finish_reason) for position, each in batch.items()}
        async for batch in _merged([one.deltas(), other.deltas()])
    ]
    assert batches == [{0: ("ab", None), 1: ("x", "length")}, {0: ("c", "stop")}]


async def test_an_error_ends_all_sources_after_what_came_before_it() -> None:
    failing, endless = Source(delta("a"), RuntimeError("broken")), Source(*[None] * 1000)
    seen = []
    with pytest.raises(RuntimeError, match="broken"):
        async for batch in _merged([failing.deltas(), endless.deltas()]):
            seen.append(batch[0].text)
    assert seen == ["a"] and failing.closed and endless.closed


async def test_closing_closes_the_sources() -> None:
    sources = [Source(delta("a"), *[None] * 1000) for _ in range(3)]
    merged = _merged([source.deltas() for source in sources])
    await anext(merged)
    await merged.aclose()
    assert all(source.closed for source in sources)
