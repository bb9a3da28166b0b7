"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web

from core.engine.output import ChoiceDelta
from core.server.admission import admit, read
from core.server.answer import ChoiceFormat, answer
from core.server.protocol import CompletionRequest
from core.server.responses import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    completion_logprobs,
    echo_logprobs,
)
from core.server.state import STATE
from core.tokenization import Tokenizer, infill_prompt
from core.types import EngineRequest


class CompletionFormat(ChoiceFormat):
    """`echoes` are the prompts' texts where the client wants them back."""

    whole_kind = CompletionResponse
    whole_object = chunk_object = "text_completion"
    prompt_in_choice = True

    def __init__(
        self, tokenizer: Tokenizer, body: CompletionRequest, requests: list[EngineRequest], echoes: list[str] | None
    ) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._prompts = [request.prompt_token_ids for request in requests[:: body.num_choices]]
        self._echoes = echoes
        self._offsets: dict[int, int] = {}  # characters of each choice's tokens so far

    def opening(self, index: int, delta: ChoiceDelta) -> CompletionChoice | None:
        """The echo."""
        if self._echoes is None:
            return None
        prompt, logprobs = index // (self._body.n or 1), None
        if self._body.logprobs is not None:
            logprobs = echo_logprobs(self._tokenizer, self._prompts[prompt], delta.prompt_logprobs or [])
            self._offsets[index] = sum(map(len, logprobs.tokens))
        return CompletionChoice(index, self._echoes[prompt], logprobs, None, None)

    def chunks(self, index: int, delta: ChoiceDelta) -> Iterator[CompletionChoice]:
        """The delta as it is."""
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            yield self._piece(index, delta)

    def told(self, choices: list[ChoiceDelta]) -> list[int]:
        """Of the answers to each prompt the n best, the best first; all as they come where none is left out."""
        made, n = self._body.num_choices, self._body.n or 1
        if made == n:
            return super().told(choices)
        groups = [range(start, start + made) for start in range(0, len(choices), made)]
        return [best for group in groups for best in sorted(group, key=lambda i: -_mean_logprob(choices[i]))[:n]]

    def whole(self, index: int, delta: ChoiceDelta) -> CompletionChoice:
        """A choice, after its echo."""
        echo, choice = self.opening(index, delta), self._piece(index, delta)
        if echo is not None:
            choice.text = echo.text + choice.text
        if echo is not None and echo.logprobs is not None and choice.logprobs is not None:
            choice.logprobs = echo.logprobs.followed_by(choice.logprobs)
        return choice

    def _piece(self, index: int, delta: ChoiceDelta) -> CompletionChoice:
        if self._body.echo_only:
            none = None if self._body.logprobs is None else CompletionLogprobs([], [], [], [])
            return CompletionChoice(index, "", none, delta.finish_reason and "length", None)
        logprobs = None
        if delta.logprobs is not None and self._body.logprobs is not None:
            offset = self._offsets.get(index, 0)
            logprobs = completion_logprobs(self._tokenizer, delta.token_ids, delta.logprobs, offset)
            self._offsets[index] = offset + sum(map(len, logprobs.tokens))
        return CompletionChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason)


def _mean_logprob(choice: ChoiceDelta) -> float:
    entries = choice.logprobs or []
    return sum(entry.logprob for entry in entries) / max(len(entries), 1)


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts."""
    body = await read(request, CompletionRequest)
    state = request.app[STATE]
    params = body.sampling(state.client.config.model.default_sampling)
    given = body.prompts()
    prompts = given
    if body.suffix:
        prompts = [infill_prompt(state.tokenizer, str(text), body.suffix) for text in given]
    special = body.add_special_tokens is not False
    generation = await admit(
        state, body, prompts, params, prefix="cmpl", add_special_tokens=special, form_field=body.form().field
    )
    echoes = None
    if body.echo:
        echoes = [prompt if isinstance(prompt, str) else state.tokenizer.decode(prompt) for prompt in given]
    return await answer(request, body, generation, CompletionFormat(state.tokenizer, body, generation.requests, echoes))


ROUTES = [web.post("/v1/completions", create_completion)]
