"""Requests of the OpenAI API, with vLLM's extras, as typed structs: the one table of fields, parsed and checked.

Sources: OpenAI's API reference (Completions, Chat Completions) and vLLM's OpenAI-compatible server. Ranges of the
sampling fields are checked where they are defined, in `core.types.SamplingParams`. Every error is an InvalidRequest
whose `param` is the path of the field: `temperature`, `messages[1].content`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from core.errors import InvalidRequest
from core.server.forms import Form, ResponseFormat, form_of
from core.server.malformed import explain, validation_error
from core.server.options import UnknownFields
from core.server.tools import ToolCall, ToolChoice
from core.types import MAX_CHOICES, MAX_LOGPROBS, SamplingParams, StructuredOutputs

PositiveInt = Annotated[int, Meta(ge=1)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
RequestId = Annotated[str, Meta(min_length=1, max_length=128)]
#: Token ids are checked against the vocabulary later; the bound keeps what travels to the engine an int64.
TokenId = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]

MAX_ANSWERS = 4096  # that one request may ask for: what a full queue holds by default
DEFAULT_MAX_TOKENS = 16  # of a completion, as OpenAI has it; a chat goes on until the context is full
MAX_TEMPLATE = 1 << 16  # characters of a chat template that comes with a request
_TEMPLATE_ARGUMENTS = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "reasoning_effort",
})  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")


# --- fields --------------------------------------------------------------------------------------------------


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a stream reports token counts: in a last chunk, or in every one (vLLM's extra)."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False  # OpenAI pads its chunks against eavesdroppers; ours never are


class Request(msgspec.Struct, kw_only=True):
    """What every request says: which model it is for. None: the one that is served."""

    model: str | None = None


class GenerationRequest(Request, kw_only=True):
    """Fields that completions and chat completions share. None: the model's own default, else OpenAI's."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[TokenId, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # vLLM's extras
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    add_special_tokens: bool | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    request_id: RequestId | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None  # the last ones are kept; -1: those that fit
    return_token_ids: bool | None = None
    vllm_xargs: dict[str, Any] | None = None  # for logits processors and samplers that plugins add
    # ours
    deadline_ms: PositiveInt | None = None  # from arrival; then the answer ends with finish_reason "deadline"

    def form(self, format_field: str = "response_format") -> Form:
        """The form that the answer must have. Raises InvalidRequest."""
        names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
        guided = {name: getattr(self, name) for name in names}
        return form_of(self.response_format, self.structured_outputs, guided, format_field=format_field)


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None  # what follows the completion, where the model can fill in

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one. Raises InvalidRequest on an empty one, or a list of several kinds."""
        if isinstance(self.prompt, str):
            prompts: list[Any] = [self.prompt]
        elif set(map(type, self.prompt)) == {int}:  # at the speed of C: there may be a million
            prompts = [self.prompt]
        else:
            prompts = self.prompt
        if not prompts or any(not prompt for prompt in prompts if not isinstance(prompt, int)):
            raise InvalidRequest("prompt: it is empty; give at least one character or token", param="prompt")
        if len(prompts) * self.num_choices > MAX_ANSWERS:
            message = (
                f"prompt: {len(prompts)} prompts times {self.num_choices} choices are more than {MAX_ANSWERS} answers"
            )
            raise InvalidRequest(message, param="prompt")
        if len({type(prompt) for prompt in prompts}) > 1:
            raise InvalidRequest("prompt: a list holds either strings, or tokens, or lists of tokens", param="prompt")
        if self.suffix and not isinstance(prompts[0], str):
            raise InvalidRequest("suffix: it goes with prompts of text, not of tokens", param="suffix")
        return prompts

    @property
    def num_choices(self) -> int:
        """How many answers to a prompt are made, of which `n` are told."""
        return self.best_of or self.n or 1

    @property
    def echo_only(self) -> bool:
        """Whether nothing but the prompt is asked for. One token is made for it nevertheless."""
        return bool(self.echo) and self.max_tokens == 0

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """How to choose tokens; `defaults` are the model's own. Raises InvalidRequest."""
        self._check_choices()
        max_tokens = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        params = _sampling(self, defaults, logprobs=self.logprobs, max_tokens=1 if self.echo_only else max_tokens)
        if self.num_choices > params.n:
            params = msgspec.structs.replace(params, n=self.num_choices, logprobs=self.logprobs or 0)
        if self.echo and self.logprobs is not None:
            alternatives = max(self.logprobs, self.prompt_logprobs or 0)
            params = msgspec.structs.replace(params, prompt_logprobs=alternatives)
        return params

    def _check_choices(self) -> None:
        """OpenAI's rule for `best_of`: the best so many answers are told, by logprob per token, which are not streamed."""
        n = self.n or 1
        if self.best_of is not None and not n <= self.best_of <= MAX_CHOICES:
            message = f"best_of: {self.best_of} is not from n, which is {n}, to {MAX_CHOICES}"
            raise InvalidRequest(message, param="best_of")
        if self.stream and self.num_choices > n:
            raise InvalidRequest("best_of: the best are known in the end; leave out stream", param="best_of")
        if self.stream and self.echo and self.logprobs is not None and n > 1:
            message = "logprobs: with echo and several choices they are not streamed; leave out stream"
            raise InvalidRequest(message, param="logprobs")


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message's content. Text is the one type that these models read."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text"]})]
    text: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation: what was said, what an assistant called, or what a tool gave."""

    role: Annotated[str, Meta(extra_json_schema={"enum": ROLES})]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None  # vLLM's extra; templates write that of the last turn, or leave it out

    def for_template(self, index: int) -> dict[str, Any]:
        """The message as chat templates read it, its content one string. Raises InvalidRequest."""
        where = f"messages[{index}]"
        if self.role not in ROLES:
            message = f"{where}.role: {self.role[:64]!r} is none of {', '.join(ROLES)}"
            raise InvalidRequest(message, param=f"{where}.role")
        if self.content is None and not self.tool_calls:
            raise InvalidRequest(f"{where}.content: it is missing", param=f"{where}.content")
        content = self._joined(f"{where}.content") if isinstance(self.content, list) else self.content
        role = "system" if self.role == "developer" else self.role
        extras = {
            "content": content,
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
            "tool_calls": self._calls(f"{where}.tool_calls"),
        }
        return {"role": role, **{key: value for key, value in extras.items() if value is not None}}

    def _calls(self, where: str) -> list[dict[str, Any]] | None:
        if not self.tool_calls:
            return None
        if self.role != "assistant":
            raise InvalidRequest(f"{where}: only an assistant calls tools, not {self.role!r}", param=where)
        return [call.for_template(f"{where}[{index}]") for index, call in enumerate(self.tool_calls)]

    def _joined(self, where: str) -> str:
        assert isinstance(self.content, list)
        for index, part in enumerate(self.content):
            if part.type != "text":
                raise _unsupported(f"{where}[{index}].type", f"this model's modalities are ['text']; got {part.type!r}")
            if part.text is None:
                raise InvalidRequest(f"{where}[{index}].text: it is missing", param=f"{where}[{index}].text")
        return "\n".join(part.text or "" for part in self.content)


class ChatRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Annotated[str, Meta(max_length=MAX_TEMPLATE)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None  # for the template, as is the next
    reasoning_effort: str | None = None
    tools: list[dict[str, Any]] | None = None  # checked where it is known whether they can be called
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as chat templates read them. Raises InvalidRequest."""
        if not self.messages:
            raise InvalidRequest("messages: the list is empty; give at least one message", param="messages")
        if clash := _TEMPLATE_ARGUMENTS & (self.chat_template_kwargs or {}).keys():
            message = f"chat_template_kwargs: {min(clash)!r} is a field of the request, not of the template"
            raise InvalidRequest(message, param="chat_template_kwargs")
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message: it contradicts add_generation_prompt; set one of them"
            raise InvalidRequest(message, param="continue_final_message")
        return [message.for_template(index) for index, message in enumerate(self.messages)]

    def sampling(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """How to choose tokens; `defaults` are the model's own. Raises InvalidRequest."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs: it needs logprobs to be true", param="top_logprobs")
        top = self.top_logprobs or 0
        if not 0 <= top <= MAX_LOGPROBS:
            raise InvalidRequest(f"top_logprobs: {top} is not in [0, {MAX_LOGPROBS}]", param="top_logprobs")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.max_completion_tokens is not None and self.max_completion_tokens < 1:
            message = f"max_completion_tokens: {self.max_completion_tokens} is less than 1"
            raise InvalidRequest(message, param="max_completion_tokens")
        return _sampling(self, defaults, logprobs=top if self.logprobs else None, max_tokens=limit)


_SHARED = tuple(
    name
    for name in SamplingParams.__struct_fields__
    if name in GenerationRequest.__struct_fields__ and name not in ("max_tokens", "stop", "structured_outputs")
)


def _sampling(
    request: GenerationRequest, defaults: Mapping[str, Any], *, logprobs: int | None, max_tokens: int | None
) -> SamplingParams:
    given = {name: value for name in _SHARED if (value := getattr(request, name)) is not None}
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    for name in ("stop_token_ids", "allowed_token_ids", "bad_words"):
        if name in given:
            given[name] = tuple(given[name])
    return SamplingParams(
        **{**defaults, **given},
        stop=stop,
        logprobs=logprobs,
        max_tokens=max_tokens,
        extra_args=request.vllm_xargs or {},
        structured_outputs=request.form().outputs,
    )


# --- fields beside the structs -------------------------------------------------------------------------------

#: Known fields that change nothing in the answer.
_HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
})  # fmt: skip

#: Known fields that would change the answer and are not implemented where the struct lacks them, with the values that
#: ask for nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "audio": (), "chat_template": (), "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],), "include_reasoning": (True,), "kv_transfer_params": (), "length_penalty": (1, 1.0), "logits_processors": ([],), "modalities": (["text"],), "prediction": (),
    "reasoning_effort": ("none",),
    "return_tokens_as_token_ids": (False,),
    "suffix": (), "tool_choice": ("none", "auto"), "tools": ([],),
    "use_beam_search": (False,), "verbosity": ("medium",), "web_search_options": (),
}  # fmt: skip

#: How alike an unknown name and a known one must be for the former to be a misspelling (0 … 1, difflib's ratio).
_MISSPELT = 0.8

#: Unknown fields that are compared with the known ones: nobody misspells more, and each takes its time.
_MOST_COMPARED = 64

_Request = TypeVar("_Request", bound=Request)
_Kind = TypeVar("_Kind")


def parse(body: bytes, kind: type[_Request], unknown: UnknownFields) -> tuple[_Request, list[str]]:
    """The request in `body`, and the names of its fields that are ignored. Raises InvalidRequest."""
    fields = fields_of(body)
    request = _decode(body, kind)
    _refuse_unsupported(fields, kind)
    return request, _ignored(fields, kind, unknown)


def fields_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body, not looked into. Raises InvalidRequest."""
    return _decode(body, dict[str, msgspec.Raw])


def _decode(body: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise validation_error(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise explain(body, error) from error


def _refuse_unsupported(fields: Mapping[str, msgspec.Raw], kind: type[Request]) -> None:
    for name in fields.keys() & _UNSUPPORTED.keys() - set(kind.__struct_fields__):
        value = msgspec.json.decode(fields[name])
        if value is not None and value not in _UNSUPPORTED[name]:
            raise _unsupported(name, "this version does not implement it; leave the field out")


def _ignored(fields: Mapping[str, msgspec.Raw], kind: type[Request], mode: UnknownFields) -> list[str]:
    """The unknown fields, in the order given. Raises InvalidRequest where the mode says so."""
    known = {*kind.__struct_fields__, *_HARMLESS, *_UNSUPPORTED}
    unknown = [name for name in fields if name not in known]
    for name in unknown[:_MOST_COMPARED]:
        close = difflib.get_close_matches(name[:64], known, n=1, cutoff=_MISSPELT)
        if mode == "error" or (mode == "auto" and close):
            hint = f"; did you mean {close[0]!r}?" if close else "; this server was told to refuse unknown fields"
            raise InvalidRequest(f"{name[:64]}: no such field{hint}", param=name[:64], code="unknown_field")
    return unknown


def _unsupported(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {reason}", param=param, code="unsupported")
