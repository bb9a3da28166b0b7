"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web

from core.engine.output import ChoiceDelta
from core.server.admission import admit, read
from core.server.answer import ChoiceFormat, answer
from core.server.protocol import CompletionRequest
from core.server.responses import CompletionChoice, CompletionResponse, completion_logprobs
from core.server.state import STATE
from core.tokenization import Tokenizer


class CompletionFormat(ChoiceFormat):
    """`echoes` are the prompts' texts where the client wants them back, one per choice."""

    whole_kind = CompletionResponse
    whole_object = chunk_object = "text_completion"
    prompt_in_choice = True

    def __init__(self, tokenizer: Tokenizer, echoes: list[str] | None) -> None:
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._offsets: dict[int, int] = {}  # characters of each choice's tokens so far

    def opening(self, index: int) -> CompletionChoice | None:
        """The echo."""
        if self._echoes is None:
            return None
        return CompletionChoice(index, self._echoes[index], None, None, None)

    def chunks(self, index: int, delta: ChoiceDelta) -> Iterator[CompletionChoice]:
        """The delta as it is."""
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            yield self._piece(index, delta)

    def whole(self, index: int, delta: ChoiceDelta) -> CompletionChoice:
        """A choice, after its echo."""
        choice = self._piece(index, delta)
        if self._echoes is not None:
            choice.text = self._echoes[index] + choice.text
        return choice

    def _piece(self, index: int, delta: ChoiceDelta) -> CompletionChoice:
        logprobs = None
        if delta.logprobs is not None:
            offset = self._offsets.get(index, 0)
            logprobs = completion_logprobs(self._tokenizer, delta.token_ids, delta.logprobs, offset)
            self._offsets[index] = offset + sum(map(len, logprobs.tokens))
        return CompletionChoice(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason)


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts."""
    body = await read(request, CompletionRequest)
    state = request.app[STATE]
    params = body.sampling(state.client.config.model.default_sampling)
    prompts = body.prompts()
    special = body.add_special_tokens is not False
    generation = await admit(
        state, body, prompts, params, prefix="cmpl", add_special_tokens=special, form_field=body.form().field
    )
    echoes = None
    if body.echo:
        texts = [prompt if isinstance(prompt, str) else state.tokenizer.decode(prompt) for prompt in prompts]
        echoes = [text for text in texts for _ in range(params.n)]
    return await answer(request, body, generation, CompletionFormat(state.tokenizer, echoes))


ROUTES = [web.post("/v1/completions", create_completion)]
