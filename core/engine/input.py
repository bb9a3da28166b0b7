"""From a prompt to engine requests: tokenized, validated against the model, one for each choice."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import msgspec

from core.config import Config
from core.errors import InvalidRequest
from core.tokenization.tokenizer import Tokenizer
from core.types import EngineRequest, SamplingParams, StructuredOutputs

#: What a model that pools gives, by its task, and the routes that ask for it.
_POOLED = {"embed": ("embeddings", "/v1/embeddings"), "classify": ("scores", "/score, /rerank or /classify")}


class InputProcessor:
    """Checks what can be checked before a request reaches the engine."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self._max_model_len = config.scheduler.max_model_len
        self._vocab_size = config.model.vocab_size
        self._name, self._pooler = config.model.name, config.model.pooler
        self._platform = config.platform
        self._takes_extra_args = bool(config.options.logits_processor or config.options.sampler)
        self._sampler = config.options.sampler
        self._eos_token_ids = config.model.eos_token_ids
        self._tokenizer = tokenizer

    def requests(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: str = "",
        add_special_tokens: bool = True,
        field: str = "prompt",
        keep_last: int | None = None,
    ) -> list[EngineRequest]:
        """One request for each of the n choices, seed and max_tokens set; `params` are as `checked` returns them.

        `keep_last`: how many of the prompt's tokens to keep, from its end; -1: as many as fit beside max_tokens.
        Raises InvalidRequest naming the field.
        """
        if keep_last == -1:
            keep_last = self._max_model_len - min(params.max_tokens or 1, self._max_model_len - 1)
        token_ids = self.encode(prompt, add_special_tokens=add_special_tokens, field=field, keep_last=keep_last)
        settled = self._settled(params, len(token_ids), field)
        parent = request_id if settled.n == 1 else f"{request_id}-0"
        return [
            EngineRequest(
                request_id=parent if index == 0 else f"{request_id}-{index}",
                prompt_token_ids=token_ids,
                params=settled if index == 0 else _of_other_choice(settled),
                choice_index=index,
                parent_id=None if index == 0 else parent,
                priority=priority,
                arrival_time=time.monotonic(),
                deadline=deadline,
                cache_salt=cache_salt,
            )
            for index in range(settled.n)
        ]

    def checked(self, params: SamplingParams, form_field: str = "structured_outputs") -> SamplingParams:
        """The parameters as the engine can follow them, whatever the prompt; bad words are spelt out.

        A form that the answers must have is compiled, which may take a second; `form_field` is where it came from.
        Raises InvalidRequest naming the field.
        """
        self.check_generates()
        self._check_ids(params.stop_token_ids, "stop_token_ids")
        self._check_ids(params.logit_bias, "logit_bias")
        self._check_features(params)
        if params.bad_words:
            params = self._with_bad_words(params)
        if params.allowed_token_ids is not None:
            params = self._with_allowed(params, params.allowed_token_ids)
        if params.structured_outputs is not None:
            self._check_form(params.structured_outputs, params, form_field)
        return params

    def _settled(self, params: SamplingParams, num_prompt: int, field: str) -> SamplingParams:
        """The parameters for a prompt of so many tokens, with a seed."""
        room = self._max_model_len - num_prompt
        if params.max_tokens is not None and params.max_tokens > room:
            raise InvalidRequest(
                f"max_tokens: {params.max_tokens} and a {field} of {num_prompt} tokens are more than the "
                f"{self._max_model_len} tokens of context; {room} are left",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return msgspec.structs.replace(
            params,
            seed=params.seed if params.seed is not None else secrets.randbits(63),
            max_tokens=params.max_tokens if params.max_tokens is not None else room,
            min_tokens=min(params.min_tokens, room),
        )

    def check_generates(self) -> None:
        """Raises InvalidRequest for a model that pools, saying where to ask it."""
        if self._pooler is not None:
            gives, asks = _POOLED[self._pooler.task]
            raise InvalidRequest(
                f"model: {self._name!r} gives {gives} and no text; ask {asks}",
                param="model",
                code="unsupported",
            )

    def _check_features(self, params: SamplingParams) -> None:
        if params.extra_args and not self._takes_extra_args:
            raise InvalidRequest(
                "vllm_xargs: nothing here reads it; start the server with --logits-processor or --sampler",
                param="vllm_xargs",
                code="unsupported",
            )
        for feature in params.features():
            if feature not in self._platform.sampling:
                hint = "; set it to 0" if feature == "temperature" else ""
                raise InvalidRequest(f"{feature}: this server's platform does not support it{hint}", param=feature)

    def _with_bad_words(self, params: SamplingParams) -> SamplingParams:
        """The parameters with the spellings of each bad word: at the beginning of a text, and after a space."""
        spellings: dict[tuple[int, ...], None] = {}
        for word in params.bad_words:
            for text in (word.lstrip(), f" {word.lstrip()}"):
                if spelling := tuple(self._tokenizer.encode(text, add_special_tokens=False, param="bad_words")):
                    self._check_ids(spelling, "bad_words")
                    spellings[spelling] = None
        return msgspec.structs.replace(params, bad_words_token_ids=tuple(spellings))

    def _with_allowed(self, params: SamplingParams, allowed: Sequence[int]) -> SamplingParams:
        """Each allowed token once: every step goes through them."""
        self._check_ids(allowed, "allowed_token_ids")
        ruled_out = {word[0] for word in params.bad_words_token_ids if len(word) == 1}
        if params.min_tokens:
            ruled_out |= {*self._eos_token_ids, *params.stop_token_ids}
        if ruled_out.issuperset(allowed):
            message = "allowed_token_ids: bad_words or min_tokens rule out each of them, so no token could come"
            raise InvalidRequest(message, param="allowed_token_ids")
        return msgspec.structs.replace(params, allowed_token_ids=tuple(dict.fromkeys(allowed)))

    def _check_form(self, form: StructuredOutputs, params: SamplingParams, field: str) -> None:
        if self._sampler is not None:
            message = f"{field}: the sampler {self._sampler!r} does not follow it; start the server without --sampler"
            raise InvalidRequest(message, param=field, code="unsupported")
        if not self._eos_token_ids:
            message = f"{field}: this model has no end-of-sequence token, with which such an answer ends"
            raise InvalidRequest(message, param=field, code="unsupported")
        for name, clashes in (("ignore_eos", params.ignore_eos), ("min_tokens", params.min_tokens > 0)):
            if clashes:
                raise InvalidRequest(f"{name}: an answer of a given form ends where the form does", param=name)
        from core.structured.grammar import check  # imports the library

        check(form, field)

    def encode(
        self,
        prompt: str | Sequence[int],
        *,
        add_special_tokens: bool = True,
        field: str = "prompt",
        keep_last: int | None = None,
        answers: bool = True,
    ) -> list[int]:
        """Token ids of a prompt, or its last ones, that fit the context, with at least one token to come if it `answers`."""
        if isinstance(prompt, str):
            if keep_last is None:
                self._refuse_hopeless(prompt, field)
            token_ids = self._tokenizer.encode(prompt, add_special_tokens=add_special_tokens, param=field)
        else:
            token_ids = list(prompt)
            self._check_ids(token_ids, field)
        if keep_last is not None:
            token_ids = token_ids[max(0, len(token_ids) - keep_last) :]
        if not token_ids:
            raise InvalidRequest(f"{field}: it is empty; at least one token is needed", param=field)
        if len(token_ids) + answers > self._max_model_len:
            raise self._too_long(f"{len(token_ids)} tokens", field)
        return token_ids

    def _refuse_hopeless(self, text: str, field: str) -> None:
        """A text this long cannot fit whatever its tokens are, so it is not worth tokenizing."""
        longest = self._tokenizer.max_token_chars
        if longest is not None and len(text) > self._max_model_len * longest:
            raise self._too_long(f"{len(text)} characters", field)

    def _too_long(self, length: str, field: str) -> InvalidRequest:
        needs = "" if self._pooler else ", of which the answer needs at least one"
        return InvalidRequest(
            f"{field}: {length} are more than this model's context of {self._max_model_len} tokens{needs}",
            param=field,
            code="context_length_exceeded",
        )

    def _check_ids(self, token_ids: Sequence[int] | dict[int, float], field: str) -> None:
        for token in token_ids:
            if not 0 <= token < self._vocab_size:
                raise InvalidRequest(f"{field}: token id {token} is not in [0, {self._vocab_size})", param=field)


def _of_other_choice(params: SamplingParams) -> SamplingParams:
    """For choices 1…n-1: what is asked about their common prompt, choice 0 tells."""
    return params if params.prompt_logprobs is None else msgspec.structs.replace(params, prompt_logprobs=None)
