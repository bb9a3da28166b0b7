"""From an admitted request to its HTTP answer, whole or as a stream. The routes say how a choice looks."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from core.engine.output import ChoiceDelta
from core.errors import InvalidRequest
from core.server.errors import REQUEST_ID
from core.server.generation import GENERATION, Batch, Generation, joined
from core.server.protocol import GenerationRequest, StreamOptions
from core.server.responses import Response
from core.server.sse import ChunkWriter, EventStream


class ChoiceFormat(abc.ABC):
    """How an API writes its choices. One per request: it may keep what it needs of each choice's beginning."""

    whole_object: str
    chunk_object: str

    @abc.abstractmethod
    def whole(self, index: int, delta: ChoiceDelta) -> Any:
        """A complete choice."""

    @abc.abstractmethod
    def chunks(self, index: int, delta: ChoiceDelta) -> Iterable[Any]:
        """The pieces of a choice that a delta brings; none while it has nothing to show."""

    @abc.abstractmethod
    def opening(self, index: int) -> Any | None:
        """What comes before a choice's first piece."""


async def answer(
    request: web.Request, body: GenerationRequest, generation: Generation, form: ChoiceFormat
) -> web.StreamResponse:
    """Run the request and answer it the way it asked for."""
    request[GENERATION] = generation
    if body.stream:
        return await _stream(request, body.stream_options or StreamOptions(), generation, form)
    if body.stream_options is not None:
        raise InvalidRequest("stream_options: it needs stream to be true", param="stream_options")
    return await _whole(generation, form)


async def collected(generation: Generation) -> list[ChoiceDelta]:
    """Run the request: its choices, each in one."""
    parts: list[list[ChoiceDelta]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.batches()) as batches:
        async for batch in batches:
            for index, delta in batch.items():
                parts[index].append(delta)
    return [joined(deltas) for deltas in parts]


async def _whole(generation: Generation, form: ChoiceFormat) -> web.Response:
    choices = await collected(generation)
    response = Response(
        id=generation.id,
        object=form.whole_object,
        created=generation.created,
        model=generation.state.model,
        system_fingerprint=generation.state.fingerprint,
        choices=[form.whole(index, choice) for index, choice in enumerate(choices)],
        usage=generation.usage(),
    )
    return web.Response(body=msgspec.json.encode(response), content_type="application/json")


async def _stream(
    request: web.Request, options: StreamOptions, generation: Generation, form: ChoiceFormat
) -> web.StreamResponse:
    head = {
        "id": generation.id,
        "object": form.chunk_object,
        "created": generation.created,
        "model": generation.state.model,
        "system_fingerprint": generation.state.fingerprint,
    }
    writer = ChunkWriter(head, usage_key=options.include_usage)
    events = _Events(writer, generation, form, options)
    return await stream(
        request, generation, writer, events.of, lambda: [writer.usage(generation.usage())] * options.include_usage
    )


async def stream(
    request: web.Request,
    generation: Generation,
    writer: EventStream,
    events: Callable[[Batch], Iterable[bytes]],
    ending: Callable[[], list[bytes]],
) -> web.StreamResponse:
    """Run the request, and write what it brings, then the `ending`.

    The stream begins with the first token, so that what fails before it still gets a status of its own.
    """
    async with aclosing(generation.batches()) as batches:
        first = await anext(batches)
        await writer.open(request)
        try:
            await writer.write(list(events(first)))
            async for batch in batches:
                await writer.write(list(events(batch)))
            await writer.write(ending())
            return await writer.close()
        except ConnectionError:
            raise
        except Exception as error:
            return await writer.fail(error, request[REQUEST_ID])


class _Events:
    """Batches as events."""

    def __init__(self, writer: ChunkWriter, generation: Generation, form: ChoiceFormat, options: StreamOptions) -> None:
        self._writer = writer
        self._generation = generation
        self._form = form
        self._continuous = options.continuous_usage_stats
        self._opened: set[int] = set()

    def of(self, batch: Batch) -> Iterator[bytes]:
        """The events of one batch."""
        for index, delta in batch.items():
            if index not in self._opened:
                self._opened.add(index)
                if (opening := self._form.opening(index)) is not None:
                    yield self._event(opening)
            for chunk in self._form.chunks(index, delta):
                yield self._event(chunk)

    def _event(self, choice: Any) -> bytes:
        return self._writer.chunk(choice, self._generation.usage() if self._continuous else None)
