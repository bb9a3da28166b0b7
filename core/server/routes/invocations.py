"""POST /invocations: the one route that SageMaker calls, for whichever API the body is of."""

from __future__ import annotations

from aiohttp import web

from core.errors import InvalidRequest
from core.server.admission import read_bytes
from core.server.protocol import fields_of
from core.server.routes.chat import create_chat_completion
from core.server.routes.completions import create_completion


async def invoke(request: web.Request) -> web.StreamResponse:
    """Answer a conversation where the body has messages, continue a prompt where it has one."""
    fields = fields_of(await read_bytes(request))
    if "messages" in fields:
        return await create_chat_completion(request)
    if "prompt" in fields:
        return await create_completion(request)
    message = (
        "messages: the field is required, or prompt: by them it is told whether the body is a chat or a completion"
    )
    raise InvalidRequest(message, param="messages")


ROUTES = [web.post("/invocations", invoke)]
