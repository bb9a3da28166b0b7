"""Bodies and answers of /tokenize and /detokenize. Source: vLLM's OpenAI-compatible server."""

from __future__ import annotations

from typing import Any

import msgspec

from core.errors import InvalidRequest
from core.server.protocol import ChatRequest, Message, Request, TokenId


class TokenizeRequest(Request, kw_only=True):
    """Body of POST /tokenize: a prompt, or a conversation as the model's chat template writes it."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None  # None: to a prompt, as templates write their own
    return_token_strs: bool | None = None

    def chat(self) -> ChatRequest | None:
        """The conversation, None where it is a prompt. Raises InvalidRequest where it is neither or both."""
        if (self.prompt is None) == (self.messages is None):
            found = "neither" if self.prompt is None else "both"
            raise InvalidRequest(f"prompt: give either it or messages, not {found}", param="prompt")
        if self.messages is None:
            return None
        return ChatRequest(
            messages=self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            chat_template_kwargs=self.chat_template_kwargs,
            tools=self.tools,
        )


class TokenizeResponse(msgspec.Struct):
    """The tokens, and the model's room for them with those of an answer. `token_strs`: as the vocabulary spells them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Request, kw_only=True):
    """Body of POST /detokenize."""

    tokens: list[TokenId]


class DetokenizeResponse(msgspec.Struct):
    """The text of tokens, special ones included."""

    prompt: str
