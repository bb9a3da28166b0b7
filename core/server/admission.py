"""The way in that all generating routes share: body, model, readiness, tokens."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from typing import TypeVar

from aiohttp import web

from core.errors import InvalidRequest
from core.server.errors import IGNORED_FIELDS, SlowBody, log
from core.server.generation import Generation
from core.server.protocol import GenerationRequest, Request, parse
from core.server.state import STATE, ServerState
from core.types import EngineRequest, SamplingParams

#: Characters beyond which prompts are tokenized beside the event loop, so that the streams that run do not wait.
LONG_PROMPTS = 16_384
#: So it is with the parsing of bodies of more bytes than this.
LONG_BODY = 65_536

_Request = TypeVar("_Request", bound=Request)


async def read(request: web.Request, kind: type[_Request]) -> _Request:
    """The parsed body. Raises InvalidRequest, NotFound, NotReady; a body that is too long, HTTP 413."""
    state = request.app[STATE]
    sent, unknown = await read_bytes(request), state.options.unknown_fields
    long = len(sent) > LONG_BODY
    body, ignored = await asyncio.to_thread(parse, sent, kind, unknown) if long else parse(sent, kind, unknown)
    if ignored and state.options.unknown_fields == "warn":
        log.warning("unknown request fields ignored", fields=[name[:64] for name in ignored[:20]])
    request[IGNORED_FIELDS] = ignored
    state.check_model(body.model)
    state.check_ready()
    return body


async def read_bytes(request: web.Request) -> bytes:
    """The body as it came; again where it was read before. Raises InvalidRequest, HTTP 408 and 413."""
    options = request.app[STATE].options
    limit = options.max_body_bytes
    if request.content_length is not None and request.content_length > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=request.content_length)
    try:
        async with asyncio.timeout(options.body_timeout):
            return await request.read()
    except TimeoutError:
        raise SlowBody(options.body_timeout) from None
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"the body could not be read: {error}") from error


async def tokens(state: ServerState, text: str, *, add_special_tokens: bool, field: str) -> list[int]:
    """The tokens of a text that only is to be counted or shown, be it longer than the context."""
    encode = functools.partial(state.tokenizer.encode, text, add_special_tokens=add_special_tokens, param=field)
    return await asyncio.to_thread(encode) if len(text) > LONG_PROMPTS else encode()


async def admit(
    state: ServerState,
    body: GenerationRequest,
    prompts: list[str | list[int]],
    params: SamplingParams,
    *,
    prefix: str,
    add_special_tokens: bool,
    field: str = "prompt",
    form_field: str = "structured_outputs",
) -> Generation:
    """Tokenize and check the prompts, which came in the body's `field`, and the form from `form_field`.

    Raises InvalidRequest.
    """
    arrival = time.monotonic()
    answer_id = f"{prefix}-{body.request_id or secrets.token_hex(16)}"
    # Clients choose `request_id` and may repeat one; the engine's ids are unique.
    engine_id = f"{answer_id}-{secrets.token_hex(4)}"
    deadline = None if body.deadline_ms is None else arrival + body.deadline_ms / 1000
    processor = state.processor

    def prepare() -> list[EngineRequest]:
        checked = processor.checked(params, form_field)
        return [
            request
            for index, prompt in enumerate(prompts)
            for request in processor.requests(
                prompt,
                checked,
                request_id=f"{engine_id}-{index}",
                priority=body.priority or 0,
                deadline=deadline,
                cache_salt=body.cache_salt or "",
                add_special_tokens=add_special_tokens,
                field=field,
                keep_last=body.truncate_prompt_tokens,
            )
        ]

    slow = sum(map(len, (*prompts, *params.bad_words))) > LONG_PROMPTS or params.structured_outputs is not None
    return Generation(state, answer_id, await asyncio.to_thread(prepare) if slow else prepare(), arrival)
