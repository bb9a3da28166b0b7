"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from core.server.admission import read, tokens
from core.server.answer import collected, stream
from core.server.errors import IGNORED_FIELDS
from core.server.generation import GENERATION
from core.server.messages_format import MessageFormat, TokenCount
from core.server.messages_protocol import CountTokensRequest, MessagesRequest
from core.server.protocol import ChatRequest
from core.server.reply import reply
from core.server.routes.chat import admit_chat, chat_context
from core.server.sse import NamedEvents
from core.server.state import STATE, ServerState
from core.server.tools import callable_tools


async def create_message(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    body = await read(request, MessagesRequest)
    request[IGNORED_FIELDS].extend(body.unenforced())
    state, chat = request.app[STATE], body.chat()
    tools = _tools(state, chat)
    generation, form = await admit_chat(state, chat, tools, prefix="msg", format_field=body.format_field)
    request[GENERATION] = generation
    message = MessageFormat(generation, form)
    if body.stream:
        return await stream(request, generation, NamedEvents(), message.events, message.ending)
    (choice,) = await collected(generation)
    return reply(message.whole(choice))


async def count_tokens(request: web.Request) -> web.Response:
    """How many tokens a conversation's prompt has."""
    body = await read(request, CountTokensRequest)
    request[IGNORED_FIELDS].extend(body.unenforced())
    state, chat = request.app[STATE], body.chat()
    prompt = (await chat_context(state, chat, _tools(state, chat))).prompt
    return reply(TokenCount(len(await tokens(state, prompt, add_special_tokens=False, field="messages"))))


def _tools(state: ServerState, chat: ChatRequest) -> tuple[dict[str, Any], ...]:
    return callable_tools(chat.tools, chat.tool_choice, has_parser=state.parsers.tools is not None)


ROUTES = [web.post("/v1/messages", create_message), web.post("/v1/messages/count_tokens", count_tokens)]
