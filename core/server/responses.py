"""What the server answers: OpenAI's response objects, with vLLM's extra `stop_reason`.

The structs are encoded as they stand, nulls included, because clients look for the keys.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from core.tokenization import Tokenizer
from core.types import FinishReason, TokenLogprobs

#: JSON has no -inf; vLLM answers this in its place.
LOWEST_LOGPROB = -9999.0


class PromptTokensDetails(msgspec.Struct):
    """Of the prompt's tokens, those whose KV was found in the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Token counts of one request, over all of its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


# --- completions ---------------------------------------------------------------------------------------------


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one item a token; `text_offset` counts characters from the start of the choice's text.

    An echoed prompt's first token has nothing before it, and null for its logprobs.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []

    def followed_by(self, more: CompletionLogprobs) -> CompletionLogprobs:
        """Both, one after the other."""
        pairs = ((getattr(self, name), getattr(more, name)) for name in self.__struct_fields__)
        return CompletionLogprobs(*(first + second for first, second in pairs))


class PromptLogprob(msgspec.Struct):
    """A token that might have stood at a place of the prompt (vLLM's form). Ranks count from 1."""

    logprob: float
    rank: int
    decoded_token: str


#: By token id, at one place of the prompt; null at the first, which has nothing before it.
PromptLogprobs = list[dict[int, PromptLogprob] | None]


class CompletionChoice(msgspec.Struct):
    """One answer to one prompt, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


# --- chat ----------------------------------------------------------------------------------------------------


class TokenLogprob(msgspec.Struct):
    """A token that might have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(msgspec.Struct):
    """A token that was chosen, and the likeliest ones at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(msgspec.Struct):
    """One item a token."""

    content: list[ChosenLogprob]
    refusal: None = None


#: The engine's, or that of a choice that ends with calls for the client to make.
ChatFinishReason = FinishReason | Literal["tool_calls"]


class CalledFunction(msgspec.Struct):
    """Which function, with which arguments: the text of a JSON object."""

    name: str
    arguments: str = ""


class MoreArguments(msgspec.Struct):
    """What a chunk adds to a call's arguments."""

    arguments: str


class MessageToolCall(msgspec.Struct):
    """A call for the client to make."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct):
    """The assistant's turn. `content` is null where there are only calls or reasoning."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ToolCallPiece(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to the call at `index`: first its id and name, then its arguments."""

    index: int
    function: CalledFunction | MoreArguments
    id: str | None = None
    type: Literal["function"] | None = None


class ChatPiece(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChatChunkChoice(msgspec.Struct):
    """A piece of one answer."""

    index: int
    delta: ChatPiece
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


# --- the whole -----------------------------------------------------------------------------------------------


class Response(msgspec.Struct, kw_only=True):
    """What both APIs answer."""

    id: str
    object: str
    created: int  # seconds of the Unix epoch
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: Usage


class CompletionResponse(Response, kw_only=True):
    """A `text_completion`."""

    choices: list[CompletionChoice]


class ChatResponse(Response, kw_only=True):
    """A `chat.completion`."""

    choices: list[ChatChoice]
    prompt_token_ids: list[int] | UnsetType = UNSET  # here, as there is one prompt
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Model(msgspec.Struct):
    """An entry of /v1/models."""

    id: str
    created: int
    max_model_len: int
    root: str
    object: str = "model"
    owned_by: str = "core"
    parent: None = None


class ModelList(msgspec.Struct):
    """The answer of /v1/models."""

    data: list[Model]
    object: str = "list"


# --- logprobs ------------------------------------------------------------------------------------------------


def completion_logprobs(
    tokenizer: Tokenizer, token_ids: list[int], logprobs: list[TokenLogprobs], offset: int
) -> CompletionLogprobs:
    """Logprobs in the completions API's form, the first token's text beginning at character `offset`."""
    found = CompletionLogprobs([], [], [], [])
    for token_id, entry in zip(token_ids, logprobs, strict=True):
        token = tokenizer.token_text(token_id)
        found.tokens.append(token)
        found.token_logprobs.append(_finite(entry.logprob))
        top = {tokenizer.token_text(other): _finite(value) for other, value in entry.top}
        found.top_logprobs.append({token: _finite(entry.logprob)} | top)
        found.text_offset.append(offset)
        offset += len(token)
    return found


def echo_logprobs(tokenizer: Tokenizer, token_ids: list[int], logprobs: list[TokenLogprobs]) -> CompletionLogprobs:
    """Those of a prompt, `logprobs` being of its tokens from the second on."""
    first = tokenizer.token_text(token_ids[0])
    others = completion_logprobs(tokenizer, token_ids[1:], logprobs, len(first))
    return CompletionLogprobs([first], [None], [None], [0]).followed_by(others)


def prompt_logprobs(tokenizer: Tokenizer, token_ids: list[int], logprobs: list[TokenLogprobs]) -> PromptLogprobs:
    """Those of a prompt in vLLM's form, `logprobs` being of its tokens from the second on."""

    def one(token_id: int, logprob: float, rank: int) -> PromptLogprob:
        return PromptLogprob(_finite(logprob), rank, tokenizer.token_text(token_id))

    found: PromptLogprobs = [None]
    for token_id, entry in zip(token_ids[1:], logprobs, strict=True):
        top = {other: one(other, value, rank) for rank, (other, value) in enumerate(entry.top, start=1)}
        found.append({token_id: one(token_id, entry.logprob, entry.rank)} | top)
    return found


def chat_logprobs(tokenizer: Tokenizer, token_ids: list[int], logprobs: list[TokenLogprobs]) -> ChatLogprobs:
    """Logprobs in the chat API's form."""
    return ChatLogprobs([_chosen(tokenizer, *pair) for pair in zip(token_ids, logprobs, strict=True)])


def _chosen(tokenizer: Tokenizer, token_id: int, entry: TokenLogprobs) -> ChosenLogprob:
    one = _token(tokenizer, token_id, entry.logprob)
    top = [_token(tokenizer, other, value) for other, value in entry.top]
    return ChosenLogprob(one.token, one.logprob, one.bytes, top)


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenLogprob:
    return TokenLogprob(tokenizer.token_text(token_id), _finite(logprob), list(tokenizer.token_bytes(token_id)))


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
