"""One client request on its way through the engine: several prompts, several choices, one stream of batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from aiohttp import web

from core.engine import output
from core.engine.output import ChoiceDelta, joined_choice
from core.errors import DeadlineExceeded, InvalidRequest, RequestError
from core.metrics import FinishedChoice
from core.server.errors import EngineFailure
from core.server.responses import PromptTokensDetails, Usage
from core.server.state import ServerState
from core.types import EngineRequest

#: What was ready at once, by choice.
Batch = dict[int, ChoiceDelta]


async def _merged(sources: Sequence[AsyncGenerator[ChoiceDelta, None]]) -> AsyncGenerator[Batch, None]:
    """The deltas of all sources, in batches of what is there at once, by the position of the source.

    A client that reads slowly, or an event loop that lags, gets fewer and larger pieces. Closing this closes the
    sources, which ends their requests in the engine.
    """
    if len(sources) == 1:  # the engine's client keeps together what waits of one request
        async with aclosing(sources[0]) as only:
            async for delta in only:
                yield {0: delta}
        return
    ready: dict[int, list[ChoiceDelta]] = {}
    wake = asyncio.Event()

    async def pump(position: int, source: AsyncGenerator[ChoiceDelta, None]) -> None:
        async with aclosing(source):
            async for delta in source:
                ready.setdefault(position, []).append(delta)
                wake.set()

    tasks = [asyncio.create_task(pump(*item)) for item in enumerate(sources)]
    for task in tasks:
        task.add_done_callback(lambda _: wake.set())
    try:
        running = tasks
        while running or ready:
            await wake.wait()
            wake.clear()
            if ready:
                batch, ready = ready, {}
                yield {position: joined_choice(deltas) for position, deltas in batch.items()}
            for task in running:
                if task.done():
                    task.result()
            running = [task for task in running if not task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Choice:
    """What the counts and the metrics need of one choice."""

    prompt_tokens: int
    cached_tokens: int = 0
    tokens: int = 0
    queue_seconds: float = 0.0
    first_token_time: float = 0.0
    last_token_time: float = 0.0
    ended: bool = False


@dataclass
class Generation:
    """An admitted request. `requests` are its choices: choice c of prompt p is the one at p * n + c."""

    state: ServerState
    id: str
    requests: list[EngineRequest]
    arrival: float  # seconds of time.monotonic()
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._choices = [_Choice(len(request.prompt_token_ids)) for request in self.requests]

    @property
    def num_choices(self) -> int:
        """Choices over all prompts."""
        return len(self.requests)

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """The answer as it comes. Raises RequestError, EngineDead, EngineFailure. Closing it aborts the request."""
        with self.state.prompt_queue.waiting(sum(choice.prompt_tokens for choice in self._firsts())) as leave:
            async with aclosing(self._batches()) as batches:
                async for batch in batches:
                    leave()
                    yield batch

    async def _batches(self) -> AsyncGenerator[Batch, None]:
        try:
            async with aclosing(_merged([self._deltas(request) for request in self.requests])) as batches:
                async for batch in batches:
                    now = time.monotonic()
                    for index, delta in batch.items():
                        self._account(index, delta, now)
                    yield batch
        except DeadlineExceeded:
            self._end_others("deadline")
            raise
        except RequestError:  # refused: a choice that has no token never ran
            self._end_others("abort", unless_new=True)
            raise
        except Exception:
            self._end_others("error")
            raise
        except BaseException:  # closed or cancelled
            self._end_others("abort")
            raise

    def _deltas(self, request: EngineRequest) -> AsyncGenerator[ChoiceDelta, None]:
        return output.generate(self.state.client, self.state.tokenizer, request)

    def _account(self, index: int, delta: ChoiceDelta, now: float) -> None:
        choice, metrics = self._choices[index], self.state.metrics
        if delta.token_ids:
            if choice.tokens == 0:
                choice.first_token_time = now
                metrics.first_token(now - self.arrival)
            else:
                metrics.next_token(now - choice.last_token_time)
            choice.tokens += len(delta.token_ids)
            choice.last_token_time = now
        choice.cached_tokens = max(choice.cached_tokens, delta.num_cached_tokens)
        choice.queue_seconds = max(choice.queue_seconds, delta.queue_seconds)
        if delta.finish_reason is not None:
            self._end(index, delta.finish_reason, now)
        if delta.finish_reason == "error" and (delta.error or "").startswith("structured_outputs: "):
            raise InvalidRequest(delta.error or "", param="structured_outputs")  # more than a form may ask for
        if delta.finish_reason == "error":
            raise EngineFailure(
                delta.error or "the engine could not go on with this request; the server's log says why"
            )
        if delta.finish_reason == "deadline" and not any(each.tokens for each in self._choices):
            raise DeadlineExceeded("deadline_ms: it passed before the first token", param="deadline_ms")

    def _end_others(self, reason: str, *, unless_new: bool = False) -> None:
        now = time.monotonic()
        for index, choice in enumerate(self._choices):
            if not choice.ended and (choice.tokens or not unless_new):
                self._end(index, reason, now)

    def _end(self, index: int, reason: str, now: float) -> None:
        choice, params = self._choices[index], self.requests[index].params
        max_tokens = params.max_tokens
        assert max_tokens is not None, "set at admission"
        choice.ended = True
        decode_time = choice.last_token_time - choice.first_token_time
        finished = FinishedChoice(
            request_id=self.id,
            index=index,
            reason=reason,
            prompt_tokens=choice.prompt_tokens,
            cached_tokens=choice.cached_tokens,
            generated_tokens=choice.tokens,
            max_tokens=max_tokens,
            num_choices=params.n,
            seconds=now - self.arrival,
            first_token_seconds=choice.first_token_time - self.arrival if choice.tokens else None,
            queue_seconds=choice.queue_seconds if choice.tokens else None,
            seconds_per_token=decode_time / (choice.tokens - 1) if choice.tokens > 1 else None,
        )
        self.state.metrics.finished(finished)

    def first_token_seconds(self) -> float | None:
        """From arrival to the first token of any choice; None before that."""
        times = [choice.first_token_time for choice in self._choices if choice.tokens]
        return min(times) - self.arrival if times else None

    def queue_seconds(self) -> float | None:
        """From arrival until the first choice ran; None before the first token."""
        times = [choice.queue_seconds for choice in self._choices if choice.tokens]
        return min(times) if times else None

    def _firsts(self) -> list[_Choice]:
        """The first choice of each prompt."""
        return [
            choice for choice, request in zip(self._choices, self.requests, strict=True) if not request.choice_index
        ]

    def usage(self) -> Usage:
        """Token counts so far. A prompt counts once, however many choices it has."""
        firsts = self._firsts()
        prompt_tokens = sum(choice.prompt_tokens for choice in firsts)
        completion_tokens = sum(choice.tokens for choice in self._choices)
        cached = PromptTokensDetails(sum(choice.cached_tokens for choice in firsts))
        return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, cached)


#: On an HTTP request: what it became, once it was admitted.
GENERATION = web.RequestKey("generation", Generation)
