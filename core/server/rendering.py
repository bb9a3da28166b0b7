"""A conversation as the text of its prompt: by the model's chat template, or by the one that came with the request."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from core.errors import InvalidRequest, TokenizerError
from core.server.protocol import ChatRequest
from core.server.state import ServerState
from core.tokenization import ChatTemplate

#: Characters, or messages, beyond which a conversation is rendered beside the event loop, which others wait for.
_LONG_TEXT = 16_384
_MANY_MESSAGES = 256
#: Fields that say something to the template alone, so that one which does not mention them makes nothing of them.
_FOR_TEMPLATE = ("documents", "reasoning_effort")


def template_of(state: ServerState, body: ChatRequest, field: str) -> ChatTemplate:
    """The template of a request whose messages came in `field`. Raises InvalidRequest."""
    if body.chat_template is not None:
        if not state.options.trust_request_chat_template:
            message = "chat_template: this server takes none from requests; start it with --trust-request-chat-template"
            raise InvalidRequest(message, param="chat_template", code="unsupported")
        return _compiled(body.chat_template)
    if state.tokenizer.chat_template is None:
        message = f"{field}: this model has no chat template; use /v1/completions, or start with --chat-template FILE"
        raise InvalidRequest(message, param=field, code="no_chat_template")
    return state.tokenizer.chat_template


@functools.lru_cache(maxsize=32)
def _compiled(text: str) -> ChatTemplate:
    try:
        return ChatTemplate(text, source="chat_template")
    except TokenizerError as error:
        raise InvalidRequest(str(error), param="chat_template") from error


def without_effect(state: ServerState, body: ChatRequest) -> list[str]:
    """The fields that were given and that the template does not mention. Raises InvalidRequest."""
    given = [name for name in _FOR_TEMPLATE if getattr(body, name) not in (None, [])]
    return [name for name in given if not template_of(state, body, "messages").mentions(name)] if given else []


async def rendered(
    state: ServerState,
    body: ChatRequest,
    messages: list[dict[str, Any]],
    tools: tuple[dict[str, Any], ...],
    field: str,
) -> str:
    """The prompt. Raises InvalidRequest."""
    length = sum(len(message.get("content") or "") for message in messages)
    render = functools.partial(_render, state, body, messages, tools, field)
    return await asyncio.to_thread(render) if length > _LONG_TEXT or len(messages) > _MANY_MESSAGES else render()


def _render(
    state: ServerState,
    body: ChatRequest,
    messages: list[dict[str, Any]],
    tools: tuple[dict[str, Any], ...],
    field: str,
) -> str:
    continues = bool(body.continue_final_message)
    effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    try:
        return template_of(state, body, field).render(
            messages,
            special_tokens=state.tokenizer.special_tokens,
            add_generation_prompt=not continues if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continues,
            tools=list(tools) or None,
            documents=body.documents or None,
            **effort,
            **(body.chat_template_kwargs or {}),
        )
    except TokenizerError as error:
        if body.chat_template is None:
            raise
        raise InvalidRequest(str(error), param="chat_template") from error
