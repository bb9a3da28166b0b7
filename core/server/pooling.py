"""From a request to vectors: inputs in, tokenized beside the event loop where they are long, all run together."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from aiohttp import web

from core.engine.pooling import PoolingInput
from core.engine.scoring import Pair, Scoring, floats
from core.server.admission import LONG_PROMPTS
from core.server.answer import collected
from core.server.errors import EngineFailure
from core.server.generation import GENERATION, Generation
from core.server.pooling_protocol import InputBody, PooledList, PoolingBody, PoolingUsage
from core.server.reply import reply
from core.server.state import STATE, ServerState
from core.types import EngineRequest

#: Makes a request's engine requests, each named by its index.
Prepare = Callable[[Callable[[int], str]], list[EngineRequest]]


class PooledAnswer:
    """A request that has run: `vectors` are float32, little-endian, one for each engine request."""

    def __init__(self, generation: Generation, vectors: list[bytes]) -> None:
        self.id = generation.id
        self.created = generation.created
        self.model = generation.state.model
        self.vectors = vectors
        tokens = generation.usage().prompt_tokens
        self.usage = PoolingUsage(tokens, tokens)

    def listed(self, kind: type[PooledList], data: Iterable[Any]) -> web.Response:
        """The answer, with an item for each input or pair."""
        return reply(kind(id=self.id, created=self.created, model=self.model, data=list(data), usage=self.usage))

    def told(self, encoding_format: str | None) -> Iterator[tuple[int, list[float] | str]]:
        """The vectors as the client wants to read them, each behind its index."""
        for index, vector in enumerate(self.vectors):
            yield index, base64.b64encode(vector).decode() if encoding_format == "base64" else floats(vector)


async def pooled(
    request: web.Request, body: InputBody, *, prefix: str, dimensions: int | None = None, activate: bool | None
) -> PooledAnswer:
    """The vector of each input. Raises RequestError, EngineDead, EngineFailure."""
    state = request.app[STATE]
    pooling = pooling_input(state)
    params = pooling.params(dimensions=dimensions, activate=activate)
    prompts = body.prompts()
    special = body.add_special_tokens is not False

    def prepare(name: Callable[[int], str]) -> list[EngineRequest]:
        encoded = [pooling.encode(p, keep=body.truncate_prompt_tokens, add_special_tokens=special) for p in prompts]
        return [pooling.request(ids, params, request_id=name(index)) for index, ids in enumerate(encoded)]

    return await _run(request, body, prefix, prepare, sum(map(len, prompts)))


async def scored(
    request: web.Request, body: PoolingBody, pairs: Sequence[Pair], *, prefix: str, field: str
) -> tuple[PooledAnswer, list[float]]:
    """A score for each pair, and what was run for it. Raises as `pooled`."""
    state = request.app[STATE]
    scoring = Scoring(state.client.config, state.tokenizer, keep=body.truncate_prompt_tokens, field=field)

    def prepare(name: Callable[[int], str]) -> list[EngineRequest]:
        return scoring.requests(pairs, name, activate=body.use_activation)

    size = sum(len(first) + len(second) for first, second in pairs)
    found = await _run(request, body, prefix, prepare, size)
    return found, scoring.scores(pairs, [floats(vector) for vector in found.vectors])


def pooling_input(state: ServerState) -> PoolingInput:
    """What checks and tokenizes. Raises InvalidRequest where the model generates."""
    return PoolingInput(state.client.config, state.tokenizer)


async def _run(request: web.Request, body: PoolingBody, prefix: str, prepare: Prepare, size: int) -> PooledAnswer:
    """`size`: characters or tokens of all inputs."""
    arrival = time.monotonic()
    answer_id = f"{prefix}-{body.request_id or secrets.token_hex(16)}"
    engine_id = f"{answer_id}-{secrets.token_hex(4)}"

    def name(index: int) -> str:
        return f"{engine_id}-{index}"

    requests = await asyncio.to_thread(prepare, name) if size > LONG_PROMPTS else prepare(name)
    generation = Generation(request.app[STATE], answer_id, [_with_fields(r, body, arrival) for r in requests], arrival)
    request[GENERATION] = generation
    choices = await collected(generation)
    vectors = [choice.pooled for choice in choices if choice.pooled is not None]
    if len(vectors) < len(choices):
        raise EngineFailure("the engine gave no vector for an input; the server's log says why")
    return PooledAnswer(generation, vectors)


def _with_fields(request: EngineRequest, body: PoolingBody, arrival: float) -> EngineRequest:
    """What the body says of when and how its inputs run."""
    return msgspec.structs.replace(
        request,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        deadline=None if body.deadline_ms is None else arrival + body.deadline_ms / 1000,
    )
