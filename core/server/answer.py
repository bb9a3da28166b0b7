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
from core.server.responses import ChatResponse, Response
from core.server.sse import ChunkWriter, EventStream


class ChoiceFormat(abc.ABC):
    """How an API writes its choices. One per request: it may keep what it needs of each choice's beginning."""

    whole_kind: type[Response]
    whole_object: str
    chunk_object: str
    #: Whether a choice says its prompt's tokens where they are asked for; else the answer does, which has one prompt.
    prompt_in_choice = False

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
        return await _stream(request, body, generation, form)
    if body.stream_options is not None:
        raise InvalidRequest("stream_options: it needs stream to be true", param="stream_options")
    return await _whole(body, generation, form)


async def collected(generation: Generation) -> list[ChoiceDelta]:
    """Run the request: its choices, each in one."""
    parts: list[list[ChoiceDelta]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.batches()) as batches:
        async for batch in batches:
            for index, delta in batch.items():
                parts[index].append(delta)
    return [joined(deltas) for deltas in parts]


async def _whole(body: GenerationRequest, generation: Generation, form: ChoiceFormat) -> web.Response:
    choices = await collected(generation)
    response = form.whole_kind(
        id=generation.id,
        object=form.whole_object,
        created=generation.created,
        model=generation.state.model,
        system_fingerprint=generation.state.fingerprint,
        choices=[form.whole(index, choice) for index, choice in enumerate(choices)],
        usage=generation.usage(),
    )
    if body.return_token_ids:
        _tell_tokens(response, generation, choices)
    return web.Response(body=msgspec.json.encode(response), content_type="application/json")


def _tell_tokens(response: Response, generation: Generation, choices: list[ChoiceDelta]) -> None:
    """vLLM's: the tokens of each choice, and of its prompt, which a chat has once for all."""
    for shaped, choice, asked in zip(response.choices, choices, generation.requests, strict=True):
        shaped.token_ids = choice.token_ids
        holder = response if isinstance(response, ChatResponse) else shaped
        holder.prompt_token_ids = asked.prompt_token_ids


async def _stream(
    request: web.Request, body: GenerationRequest, generation: Generation, form: ChoiceFormat
) -> web.StreamResponse:
    options = body.stream_options or StreamOptions()
    head = {
        "id": generation.id,
        "object": form.chunk_object,
        "created": generation.created,
        "model": generation.state.model,
        "system_fingerprint": generation.state.fingerprint,
    }
    writer = ChunkWriter(head, usage_key=options.include_usage)
    events = _Events(writer, generation, form, body)
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

    def __init__(
        self, writer: ChunkWriter, generation: Generation, form: ChoiceFormat, body: GenerationRequest
    ) -> None:
        self._writer = writer
        self._generation = generation
        self._form = form
        self._continuous = body.stream_options is not None and body.stream_options.continuous_usage_stats
        self._opened: set[int] = set()
        #: Tokens of each choice that no chunk has told yet, where the client asked for them.
        self._untold: dict[int, list[int]] | None = {} if body.return_token_ids else None

    def of(self, batch: Batch) -> Iterator[bytes]:
        """The events of one batch."""
        for index, delta in batch.items():
            if index not in self._opened:
                self._opened.add(index)
                if (opening := self._form.opening(index)) is not None:
                    yield self._event(opening, self._prompt() if index == min(self._opened) else None)
            chunks = list(self._form.chunks(index, delta))
            if self._untold is not None:
                self._tell(self._untold, index, delta, chunks)
            for chunk in chunks:
                yield self._event(chunk)

    def _prompt(self) -> list[int] | None:
        asked = self._untold is not None and not self._form.prompt_in_choice
        return self._generation.requests[0].prompt_token_ids if asked else None

    def _tell(self, untold: dict[int, list[int]], index: int, delta: ChoiceDelta, chunks: list[Any]) -> None:
        """The first chunk of a delta has its tokens; those of deltas without a chunk go with the next one."""
        first = index not in untold
        tokens = untold.setdefault(index, [])
        tokens += delta.token_ids
        if not chunks:
            return
        chunks[0].token_ids, untold[index] = tokens, []
        if first and self._form.prompt_in_choice:
            chunks[0].prompt_token_ids = self._generation.requests[index].prompt_token_ids

    def _event(self, choice: Any, prompt: list[int] | None = None) -> bytes:
        return self._writer.chunk(choice, self._generation.usage() if self._continuous else None, prompt)
