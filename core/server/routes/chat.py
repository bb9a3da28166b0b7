"""POST /v1/chat/completions."""

from __future__ import annotations

from aiohttp import web

from core.engine.output import ChoiceDelta
from core.errors import InvalidRequest
from core.server.admission import admit, read
from core.server.answer import ChoiceFormat, answer
from core.server.protocol import ChatRequest
from core.server.responses import ChatChoice, ChatChunkChoice, ChatLogprobs, ChatMessage, ChatPiece, chat_logprobs
from core.server.state import STATE, ServerState
from core.tokenization import Tokenizer


class ChatFormat(ChoiceFormat):
    """The first chunk of a choice carries the role, the next ones its content."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def opening(self, index: int) -> ChatChunkChoice:
        """The role."""
        return ChatChunkChoice(index, ChatPiece(role="assistant", content=""), None, None, None)

    def chunk(self, index: int, delta: ChoiceDelta) -> ChatChunkChoice:
        """A piece of the message; an ending without text adds nothing."""
        piece = ChatPiece(content=delta.text or None)
        return ChatChunkChoice(index, piece, self._logprobs(delta), delta.finish_reason, delta.stop_reason)

    def whole(self, index: int, delta: ChoiceDelta) -> ChatChoice:
        """The message."""
        message = ChatMessage(content=delta.text)
        return ChatChoice(index, message, self._logprobs(delta), delta.finish_reason, delta.stop_reason)

    def _logprobs(self, delta: ChoiceDelta) -> ChatLogprobs | None:
        if delta.logprobs is None:
            return None
        return chat_logprobs(self._tokenizer, delta.token_ids, delta.logprobs)


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    body = await read(request, ChatRequest)
    state = request.app[STATE]
    params = body.sampling(state.client.config.model.default_sampling)
    prompt = _prompt(state, body)
    special = body.add_special_tokens is True  # templates write their own
    generation = await admit(
        state, body, [prompt], params, prefix="chatcmpl", add_special_tokens=special, field="messages"
    )
    return await answer(request, body, generation, ChatFormat(state.tokenizer))


def _prompt(state: ServerState, body: ChatRequest) -> str:
    if not state.tokenizer.has_chat_template:
        message = "messages: this model has no chat template; use /v1/completions, or start with --chat-template FILE"
        raise InvalidRequest(message, param="messages", code="no_chat_template")
    continues = bool(body.continue_final_message)
    return state.tokenizer.apply_chat_template(
        body.conversation(),
        add_generation_prompt=not continues if body.add_generation_prompt is None else body.add_generation_prompt,
        continue_final_message=continues,
        **(body.chat_template_kwargs or {}),
    )


ROUTES = [web.post("/v1/chat/completions", create_chat_completion)]
