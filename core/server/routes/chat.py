"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from core.errors import InvalidRequest
from core.server.admission import admit, read
from core.server.answer import answer
from core.server.chat_format import ChatFormat
from core.server.errors import IGNORED_FIELDS
from core.server.generation import Generation
from core.server.parsers import ParserContext
from core.server.protocol import ChatRequest
from core.server.state import STATE, ServerState
from core.server.tools import callable_tools, unenforced


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    body = await read(request, ChatRequest)
    state = request.app[STATE]
    tools = callable_tools(body.tools, body.tool_choice, has_parser=state.parsers.tools is not None)
    request[IGNORED_FIELDS].extend(unenforced(tools))
    generation, form = await admit_chat(state, body, tools, prefix="chatcmpl")
    return await answer(request, body, generation, form)


async def admit_chat(
    state: ServerState,
    body: ChatRequest,
    tools: tuple[dict[str, Any], ...],
    *,
    prefix: str,
    field: str = "messages",
) -> tuple[Generation, ChatFormat]:
    """A conversation on its way, and what reads its answer. It came in the body's `field`. Raises InvalidRequest."""
    params = body.sampling(state.client.config.model.default_sampling)
    if special_tokens := state.parsers.need_special_tokens(tools=bool(tools)):
        params = msgspec.structs.replace(params, skip_special_tokens=False)
    context = chat_context(state, body, tools, field=field)
    generation = await admit(
        state,
        body,
        [context.prompt],
        params,
        prefix=prefix,
        add_special_tokens=body.add_special_tokens is True,  # templates write their own
        field=field,
    )
    parallel = body.parallel_tool_calls is not False
    form = ChatFormat(
        state.tokenizer,
        lambda: state.parsers.for_choice(context, parallel=parallel),
        special_tokens=special_tokens,
    )
    return generation, form


def chat_context(
    state: ServerState, body: ChatRequest, tools: tuple[dict[str, Any], ...], *, field: str = "messages"
) -> ParserContext:
    """The prompt, and what else the answer's parsers may know."""
    if not state.tokenizer.has_chat_template:
        message = f"{field}: this model has no chat template; use /v1/completions, or start with --chat-template FILE"
        raise InvalidRequest(message, param=field, code="no_chat_template")
    messages = body.conversation()
    continues = bool(body.continue_final_message)
    prompt = state.tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=not continues if body.add_generation_prompt is None else body.add_generation_prompt,
        continue_final_message=continues,
        tools=list(tools) or None,
        **(body.chat_template_kwargs or {}),
    )
    return ParserContext(
        tools=tools,
        tool_choice="auto" if tools else "none",
        prompt=prompt,
        continued=messages[-1]["content"] if continues else None,
    )


ROUTES = [web.post("/v1/chat/completions", create_chat_completion)]
