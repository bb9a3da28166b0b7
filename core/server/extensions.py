"""What a plugin's HTTP route may use of the server.

    def routes(context: RouteContext) -> list[web.RouteDef]:
        async def shout(request: web.Request) -> web.Response:
            body = await request.json()
            generation = await context.generate(request, body["prompt"], {"max_tokens": 20})
            text = "".join([delta.text async for delta in generation.deltas()])
            return web.json_response({"text": text.upper()})

        return [web.post("/v1/shout", shout)]

A route runs behind the server's own middleware: where the server has API keys, it wants one; a `RequestError` of
core.errors becomes its HTTP status in OpenAI's shape, any other exception a 500 with its traceback in the log; a client
that leaves cancels the handler, which ends its generation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from aiohttp import web

from core.server.admission import admit
from core.server.generation import GENERATION, Generation
from core.server.malformed import validation_error
from core.server.protocol import GenerationRequest
from core.server.state import ServerState
from core.types import FinishReason, SamplingParams


class TextDelta(msgspec.Struct, frozen=True):
    """What is new of choice `index`. `finish_reason` is set on its last delta only."""

    index: int
    text: str
    finish_reason: FinishReason | None


class RouteGeneration:
    """A request that was admitted."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    @property
    def id(self) -> str:
        """The answer's id."""
        return self._generation.id

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """Run it: the texts as they come. Closing this ends the request in the engine.

        Raises QueueFull, DeadlineExceeded and other errors that the server answers as it does those of its own routes.
        """
        async with aclosing(self._generation.batches()) as batches:
            async for batch in batches:
                for index, delta in batch.items():
                    yield TextDelta(index, delta.text, delta.finish_reason)

    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt, and of all choices so far."""
        usage = self._generation.usage()
        return usage.prompt_tokens, usage.completion_tokens


class RouteContext:
    """The server, for the routes of one plugin. `options` are those given with `--plugin-opt`."""

    def __init__(self, state: ServerState, plugin: str, options: Mapping[str, str]) -> None:
        self._state = state
        self._plugin = plugin
        self.options = options

    @property
    def model(self) -> str:
        """The name that clients use."""
        return self._state.model

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text of a conversation by the model's chat template, `variables` (`tools`, …) being the template's own.

        It has the special tokens that it needs: generate with `add_special_tokens=False`. Raises InvalidRequest.
        """
        return self._state.tokenizer.apply_chat_template([dict(message) for message in messages], **variables)

    async def generate(
        self,
        request: web.Request,
        prompt: str | list[int],
        sampling: Mapping[str, Any],
        *,
        add_special_tokens: bool = True,
        deadline_ms: int | None = None,
        priority: int = 0,
    ) -> RouteGeneration:
        """Admit a prompt, as text or tokens, as the core's own routes do; nothing runs before its `deltas` are read.

        `sampling` has the fields of `core.types.SamplingParams`; what it leaves out is the model's own default, else
        theirs. `deadline_ms` counts from now. Raises InvalidRequest naming the field, NotReady while the model loads.
        """
        self._state.check_ready()
        body = GenerationRequest(deadline_ms=deadline_ms, priority=priority)
        params = self._params(sampling)
        generation = await admit(
            self._state, body, [prompt], params, prefix=self._plugin, add_special_tokens=add_special_tokens
        )
        request[GENERATION] = generation  # for the line in the log
        return RouteGeneration(generation)

    def _params(self, sampling: Mapping[str, Any]) -> SamplingParams:
        defaults = self._state.client.config.model.default_sampling
        try:
            return msgspec.convert({**defaults, **sampling}, SamplingParams)
        except msgspec.ValidationError as error:
            raise validation_error(error) from error
