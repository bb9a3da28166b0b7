"""POST /tokenize and /detokenize."""

from __future__ import annotations

from aiohttp import web

from core.errors import InvalidRequest
from core.server.admission import read, tokens
from core.server.reply import reply
from core.server.routes.chat import chat_context
from core.server.state import STATE, ServerState
from core.server.tokens_protocol import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from core.server.tools import callable_tools


async def tokenize(request: web.Request) -> web.Response:
    """What a prompt or a conversation costs."""
    body = await read(request, TokenizeRequest)
    state = request.app[STATE]
    found = await _tokens(state, body)
    backend = state.tokenizer.backend
    spelt = [backend.id_to_token(token_id) or "" for token_id in found] if body.return_token_strs else None
    return reply(TokenizeResponse(len(found), state.client.config.scheduler.max_model_len, found, spelt))


async def _tokens(state: ServerState, body: TokenizeRequest) -> list[int]:
    chat = body.chat()
    if chat is None:
        special = body.add_special_tokens is not False
        return await tokens(state, body.prompt or "", add_special_tokens=special, field="prompt")
    tools = callable_tools(body.tools, None, has_parser=state.parsers.tools is not None)
    text = (await chat_context(state, chat, tools)).prompt
    return await tokens(state, text, add_special_tokens=body.add_special_tokens is True, field="messages")


async def detokenize(request: web.Request) -> web.Response:
    """The text of tokens."""
    body = await read(request, DetokenizeRequest)
    state = request.app[STATE]
    size = state.client.config.model.vocab_size
    for index, token_id in enumerate(body.tokens):
        if not 0 <= token_id < size:
            where = f"tokens[{index}]"
            raise InvalidRequest(f"{where}: token id {token_id} is not in [0, {size})", param=where)
    return reply(DetokenizeResponse(state.tokenizer.decode(body.tokens, skip_special_tokens=False)))


ROUTES = [web.post("/tokenize", tokenize), web.post("/detokenize", detokenize)]
