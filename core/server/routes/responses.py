"""/v1/responses: create, get, delete, cancel, list the input, count its tokens."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from aiohttp import web

from core.errors import InvalidRequest
from core.server.admission import read, tokens
from core.server.answer import collected, stream
from core.server.authorize import KEY_NUMBER
from core.server.errors import IGNORED_FIELDS, REQUEST_ID, Handler, describe
from core.server.frontends import FRONTENDS
from core.server.generation import GENERATION, Generation
from core.server.protocol import ChatRequest
from core.server.reply import reply
from core.server.responses_format import ResponseError, ResponseEvents, ResponseFormat, new_body
from core.server.responses_protocol import ConversationRequest, ResponsesRequest
from core.server.responses_store import RESPONSES, ResponseStore, StoredResponse
from core.server.routes.chat import admit_chat, chat_context
from core.server.state import STATE, ServerState
from core.server.tools import callable_tools

_MOST_LISTED = 100
_LISTED = 20


async def create_response(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, and keep the answer unless `store` is false."""
    body = await read(request, ResponsesRequest)
    if (away := request.app[FRONTENDS].holder(request, body.previous_response_id)) is not None:
        return await request.app[FRONTENDS].pass_on(request, away)
    body.check()
    request[IGNORED_FIELDS].extend(body.unenforced())
    state, store = request.app[STATE], request.app[RESPONSES]
    owner = request.get(KEY_NUMBER)
    earlier, given = store.conversation(body.previous_response_id, owner), body.items()
    chat = body.chat([*earlier, *given])
    generation, form = await admit_chat(
        state, chat, _tools(state, chat), prefix="resp", field="input", format_field="text.format"
    )
    request[GENERATION] = generation
    response = new_body(body, request.app[FRONTENDS].new_response_id(), generation.created, state.model)
    stored, format_ = StoredResponse(response, earlier, given, owner), ResponseFormat(generation, form, response)
    if body.background:
        return _in_background(request, stored, generation, format_)
    if body.stream:
        return await _streamed(request, stored, generation, format_)
    (choice,) = await collected(generation)
    format_.whole(choice)
    _keep(store, stored)
    return reply(response)


async def _streamed(
    request: web.Request, stored: StoredResponse, generation: Generation, form: ResponseFormat
) -> web.StreamResponse:
    def ending() -> list[bytes]:
        events = form.ending()
        _keep(request.app[RESPONSES], stored)  # before the client learns that it may go on from it
        return events

    return await stream(request, generation, ResponseEvents(form), form.events, ending)


def _keep(store: ResponseStore, stored: StoredResponse) -> None:
    if stored.response.store:
        store.put(stored)


# --- in the background ---------------------------------------------------------------------------------------


def _in_background(
    request: web.Request, stored: StoredResponse, generation: Generation, form: ResponseFormat
) -> web.Response:
    """Answer at once; whoever asks for the response later sees how far it is."""
    stored.response.status = "queued"
    answer = reply(stored.response)
    work = _run(request.app[STATE], request.app[RESPONSES], stored, generation, form, request[REQUEST_ID])
    stored.task = asyncio.create_task(work)
    request.app[RESPONSES].put(stored)
    return answer


async def _run(
    state: ServerState,
    store: ResponseStore,
    stored: StoredResponse,
    generation: Generation,
    form: ResponseFormat,
    request_id: str,
) -> None:
    response = stored.response
    response.status = "in_progress"
    try:
        with state.running(api=True):
            (choice,) = await collected(generation)
        form.whole(choice)
    except Exception as error:
        _, described = describe(error, request_id)
        response.status = "failed"
        response.error = ResponseError(described.error.code or described.error.type, described.error.message)
    stored.task = None
    store.put(stored)


async def cancel_response(request: web.Request) -> web.Response:
    """End a response that runs in the background; one that has ended stays as it is."""
    stored = _stored(request)
    if not stored.response.background:
        message = "response_id: only a response that was made with background can be cancelled"
        raise InvalidRequest(message, param="response_id")
    if stored.task is not None:
        stored.task.cancel()
        stored.task = None
        stored.response.status = "cancelled"
    return reply(stored.response)


# --- what was stored -----------------------------------------------------------------------------------------


async def get_response(request: web.Request) -> web.Response:
    """A response as it is now."""
    if request.query.get("stream", "").lower() == "true":
        message = "stream: a stored response is not streamed here; leave it out"
        raise InvalidRequest(message, param="stream", code="unsupported")
    return reply(_stored(request).response)


async def delete_response(request: web.Request) -> web.Response:
    """Forget a response."""
    response_id = request.match_info["response_id"]
    request.app[RESPONSES].delete(response_id, request.get(KEY_NUMBER))
    return reply({"id": response_id, "object": "response", "deleted": True})


async def list_input_items(request: web.Request) -> web.Response:
    """The items that a response answers, those of the responses before it included; the newest first."""
    stored = _stored(request)
    items = [*stored.earlier, *stored.given]
    if _choice(request, "order", "desc", ("asc", "desc")) == "desc":
        items.reverse()
    if (after := request.query.get("after")) is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(f"after: {after[:64]!r} is none of the items", param="after")
        items = items[ids.index(after) + 1 :]
    limit = _limit(request)
    page = items[:limit]
    return reply(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


async def count_input_tokens(request: web.Request) -> web.StreamResponse:
    """How many tokens a response's prompt would have."""
    body = await read(request, ConversationRequest)
    if (away := request.app[FRONTENDS].holder(request, body.previous_response_id)) is not None:
        return await request.app[FRONTENDS].pass_on(request, away)
    request[IGNORED_FIELDS].extend(body.unenforced())
    state = request.app[STATE]
    earlier = request.app[RESPONSES].conversation(body.previous_response_id, request.get(KEY_NUMBER))
    chat = body.chat([*earlier, *body.items()])
    prompt = (await chat_context(state, chat, _tools(state, chat), field="input")).prompt
    count = len(await tokens(state, prompt, add_special_tokens=False, field="input"))
    return reply({"object": "response.input_tokens", "input_tokens": count})


def _where_it_is(handler: Handler) -> Handler:
    """The handler of a stored response, run by the frontend that has it."""

    @functools.wraps(handler)
    async def run(request: web.Request) -> web.StreamResponse:
        away = request.app[FRONTENDS].holder(request, request.match_info["response_id"])
        return await (handler(request) if away is None else request.app[FRONTENDS].pass_on(request, away))

    return run


def _stored(request: web.Request) -> StoredResponse:
    return request.app[RESPONSES].get(request.match_info["response_id"], request.get(KEY_NUMBER))


def _choice(request: web.Request, name: str, default: str, known: tuple[str, ...]) -> str:
    value = request.query.get(name, default)
    if value not in known:
        raise InvalidRequest(f"{name}: {value[:64]!r} is none of {', '.join(known)}", param=name)
    return value


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(_LISTED))
    if not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST_LISTED:
        raise InvalidRequest(f"limit: {text[:64]!r} is not from 1 to {_MOST_LISTED}", param="limit")
    return int(text)


def _tools(state: ServerState, chat: ChatRequest) -> tuple[dict[str, Any], ...]:
    return callable_tools(chat.tools, chat.tool_choice, has_parser=state.parsers.tools is not None)


ROUTES = [
    web.post("/v1/responses", create_response),
    web.post("/v1/responses/input_tokens", count_input_tokens),
    web.get("/v1/responses/{response_id}", _where_it_is(get_response)),
    web.delete("/v1/responses/{response_id}", _where_it_is(delete_response)),
    web.post("/v1/responses/{response_id}/cancel", _where_it_is(cancel_response)),
    web.get("/v1/responses/{response_id}/input_items", _where_it_is(list_input_items)),
]
