"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from core.server.admission import admit, read
from core.server.answer import answer
from core.server.chat_format import ChatFormat
from core.server.errors import IGNORED_FIELDS
from core.server.forced_calls import ForcedCallParser, calls_form, must_call
from core.server.generation import Generation
from core.server.parsers import AnswerParser, ParserContext
from core.server.protocol import ChatRequest
from core.server.rendering import rendered, without_effect
from core.server.state import STATE, ServerState
from core.server.tools import callable_tools, unenforced


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    body = await read(request, ChatRequest)
    state = request.app[STATE]
    tools = callable_tools(body.tools, body.tool_choice, has_parser=state.parsers.tools is not None)
    request[IGNORED_FIELDS].extend([*unenforced(tools, body.tool_choice), *without_effect(state, body)])
    generation, form = await admit_chat(state, body, tools, prefix="chatcmpl")
    return await answer(request, body, generation, form)


async def admit_chat(
    state: ServerState,
    body: ChatRequest,
    tools: tuple[dict[str, Any], ...],
    *,
    prefix: str,
    field: str = "messages",
    format_field: str = "response_format",
) -> tuple[Generation, ChatFormat]:
    """A conversation on its way, and what reads its answer. It came in the body's `field`. Raises InvalidRequest.

    An answer of a given form is taken as it is: it has no room for reasoning, nor for calls in the model's own way.
    """
    state.processor.check_generates()
    params = body.sampling(state.client.config.model.default_sampling)
    form_field, several = body.form(format_field).field, body.parallel_tool_calls is not False
    forced = must_call(tools, body.tool_choice)
    if forced:
        form_field = "tools"
        form = calls_form(forced, several=several and body.tool_choice == "required")
        params = msgspec.structs.replace(params, structured_outputs=form)
    has_form = params.structured_outputs is not None
    special_tokens = not has_form and state.parsers.need_special_tokens(tools=bool(tools))
    if special_tokens:
        params = msgspec.structs.replace(params, skip_special_tokens=False)
    context = await chat_context(state, body, tools, field=field)

    def new_parser() -> AnswerParser:
        if has_form:
            return AnswerParser(None, ForcedCallParser(context) if forced else None)
        return state.parsers.for_choice(context, parallel=several)

    generation = await admit(
        state,
        body,
        [context.prompt],
        params,
        prefix=prefix,
        add_special_tokens=body.add_special_tokens is True,  # templates write their own
        field=field,
        form_field=form_field,
    )
    return generation, ChatFormat(state.tokenizer, new_parser, special_tokens=special_tokens)


async def chat_context(
    state: ServerState, body: ChatRequest, tools: tuple[dict[str, Any], ...], *, field: str = "messages"
) -> ParserContext:
    """The prompt, and what else the answer's parsers may know."""
    messages = body.conversation()
    prompt = await rendered(state, body, messages, tools, field)
    return ParserContext(
        tools=tools,
        tool_choice="auto" if tools else "none",
        prompt=prompt,
        continued=messages[-1]["content"] if body.continue_final_message else None,
    )


ROUTES = [web.post("/v1/chat/completions", create_chat_completion)]
