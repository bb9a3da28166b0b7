"""From an admitted request to its HTTP answer, whole or as a stream. The routes say how a choice looks."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from core.engine.output import ChoiceDelta, joined_choice
from core.errors import InvalidRequest
from core.server.errors import REQUEST_ID
from core.server.generation import GENERATION, Batch, Generation
from core.server.protocol import GenerationRequest, StreamOptions
from core.server.reply import reply
from core.server.responses import ChatResponse, Response, prompt_logprobs
from core.server.sse import ChunkWriter, EventStream
from core.tokenization import Tokenizer
from core.types import EngineRequest


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
    def opening(self, index: int, delta: ChoiceDelta) -> Any | None:
        """What comes before a choice's first piece, which `delta` brings."""

    def told(self, choices: list[ChoiceDelta]) -> list[int]:
        """Which of the complete choices the client gets, in this order."""
        return list(range(len(choices)))


async def answer(
    request: web.Request, body: GenerationRequest, generation: Generation, form: ChoiceFormat
) -> web.StreamResponse:
    """Run the request and answer it the way it asked for."""
    request[GENERATION] = generation
    if body.stream:
        if body.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs: they are not streamed; leave out stream", param="prompt_logprobs")
        return await _stream(request, body, generation, form)
    if body.stream_options is not None:
        raise InvalidRequest("stream_options: it needs stream to be true", param="stream_options")
    return await _whole(body, generation, form)


async def collected(generation: Generation) -> list[ChoiceDelta]:
    """Run the request: its choices, each in one. What the first choice of a prompt says of the prompt, they all say."""
    parts: list[list[ChoiceDelta]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.batches()) as batches:
        async for batch in batches:
            for index, delta in batch.items():
                parts[index].append(delta)
    choices = [joined_choice(deltas) for deltas in parts]
    for index, request in enumerate(generation.requests):
        if request.choice_index and (found := choices[index - request.choice_index].prompt_logprobs) is not None:
            choices[index] = msgspec.structs.replace(choices[index], prompt_logprobs=found)
    return choices


async def _whole(body: GenerationRequest, generation: Generation, form: ChoiceFormat) -> web.Response:
    choices = await collected(generation)
    told = form.told(choices)
    response = form.whole_kind(
        id=generation.id,
        object=form.whole_object,
        created=generation.created,
        model=generation.state.model,
        system_fingerprint=generation.state.fingerprint,
        choices=[form.whole(position, choices[index]) for position, index in enumerate(told)],
        usage=generation.usage(),
    )
    for shaped, index in zip(response.choices, told, strict=True):
        _tell_more(response, shaped, body, choices[index], generation.requests[index], generation.state.tokenizer)
    return reply(response)


def _tell_more(
    response: Response,
    shaped: Any,
    body: GenerationRequest,
    choice: ChoiceDelta,
    asked: EngineRequest,
    tokenizer: Tokenizer,
) -> None:
    """vLLM's extras: the tokens of a choice, and of its prompt what a chat has once for all."""
    holder: Any = response if isinstance(response, ChatResponse) else shaped
    if body.return_token_ids:
        shaped.token_ids = choice.token_ids
        holder.prompt_token_ids = asked.prompt_token_ids
    if body.prompt_logprobs is not None:
        holder.prompt_logprobs = prompt_logprobs(tokenizer, asked.prompt_token_ids, choice.prompt_logprobs or [])


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
                if (opening := self._form.opening(index, delta)) is not None:
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
