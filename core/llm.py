"""The offline door: the same engine, in this process.

from core import LLM, SamplingParams

llm = LLM("path/to/model")
for output in llm.generate(["The sky is"], SamplingParams(max_tokens=16)):
    print(output.outputs[0].text)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self, cast

import msgspec

from core import plugins
from core.config import parse_options, resolve
from core.engine.core import Engine
from core.engine.input import InputProcessor
from core.engine.output import Choice
from core.engine.pooling import PoolingInput
from core.engine.scoring import Scoring, text_pairs, vector_of
from core.errors import ConfigError, InvalidRequest
from core.logs import get_logger
from core.platform import MemoryPlan, Plan
from core.progress import ProgressBar
from core.tokenization import Tokenizer, load_tokenizer
from core.types import EngineRequest, FinishReason, RequestDelta, SamplingParams, TokenLogprobs

log = get_logger("llm")

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class CompletionOutput(msgspec.Struct):
    """One choice: its text, its tokens, why it ended, and the logprobs that were asked for."""

    index: int
    text: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class RequestOutput(msgspec.Struct):
    """One prompt and its choices."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the prompt's tokens from the second on, where asked for


class PoolingOutput(msgspec.Struct):
    """One prompt and its vector."""

    request_id: str
    prompt_token_ids: list[int]
    vector: list[float]


class LLM:
    """A model, loaded and ready, with the options of `core.config.Options` as keywords.

    Raises ConfigError on a wrong option, ModelError and PlatformError on what they name. Not thread-safe.
    """

    def __init__(self, model: str | None = None, *, progress: bool = True, **options: Any) -> None:
        parsed = parse_options(options)
        config = resolve(model, parsed, plugins.extensions(parsed))
        chosen = plugins.choose(parsed)
        self._progress = progress
        self._tokenizer = load_tokenizer(config.model.tokenizer_path, chat_template=config.model.chat_template)
        with ProgressBar("loading", enabled=progress) as bar:
            self._engine = Engine.build(config, chosen, bar.stage, _log_plan)
        self._input = InputProcessor(self._engine.config, self._tokenizer)
        self._ids = itertools.count()

    @property
    def engine(self) -> Engine:
        """The engine underneath: its configuration, its memory plan and its statistics."""
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt (a text, or token ids), with one set of parameters or one for each prompt.

        Outputs come in the order of the prompts. Raises InvalidRequest before anything runs.
        """
        return self._run(_prompt_list(prompts), params, priority, progress, add_special_tokens=True)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of several, rendered by the model's chat template."""
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations = cast("list[Sequence[Message]]", [messages] if single else list(messages))
        prompts: list[Prompt] = [
            self._tokenizer.apply_chat_template([dict(m) for m in conversation], **template_options)
            for conversation in conversations
        ]
        return self._run(prompts, params, None, progress, add_special_tokens=False)

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        dimensions: int | None = None,
        activate: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        progress: bool | None = None,
    ) -> list[PoolingOutput]:
        """What a model that pools makes of each prompt: an embedding, or a classifier's scores.

        `activate`: whether embeddings are normalised, or scores made probabilities; None: as the model wants it. Raises
        InvalidRequest before anything runs.
        """
        pooling = PoolingInput(self._engine.config, self._tokenizer)
        params = pooling.params(dimensions=dimensions, activate=activate)
        encoded = [pooling.encode(each, keep=truncate_prompt_tokens) for each in _prompt_list(prompts)]
        return self._pool([pooling.request(ids, params, request_id=self._name()) for ids in encoded], progress)

    def embed(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[PoolingOutput]:
        """The embedding of each prompt, with the options of `encode`. Raises InvalidRequest for a model that has none."""
        pooling = PoolingInput(self._engine.config, self._tokenizer)
        if pooling.pooler.task != "embed":
            raise InvalidRequest("this model classifies; use score, or encode for its scores", param="model")
        return self.encode(prompts, **options)

    def score(
        self,
        queries: str | Sequence[str],
        documents: str | Sequence[str],
        *,
        truncate_prompt_tokens: int | None = None,
        progress: bool | None = None,
    ) -> list[float]:
        """How well each document answers its query; one query stands for all documents.

        A cross-encoder reads both together; of an embedding model it is the cosine of their vectors.
        """
        pairs = text_pairs(queries, documents)
        scoring = Scoring(self._engine.config, self._tokenizer, keep=truncate_prompt_tokens)
        requests = scoring.requests(pairs, lambda index: self._name())
        return scoring.scores(pairs, [each.vector for each in self._pool(requests, progress)])

    def close(self) -> None:
        """Free the model. The object cannot be used after."""
        self._engine.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- running ---

    def _name(self) -> str:
        return f"offline-{next(self._ids)}"

    def _pool(self, requests: list[EngineRequest], progress: bool | None) -> list[PoolingOutput]:
        vectors: dict[str, list[float]] = {}
        show = self._progress if progress is None else progress
        with ProgressBar("pooling", total=len(requests), unit="prompts", enabled=show) as bar:

            def take(delta: RequestDelta) -> bool:
                vectors[delta.request_id] = vector_of(delta)
                bar.advance(1)
                return True

            self._drive(requests, take)
        return [PoolingOutput(r.request_id, r.prompt_token_ids, vectors[r.request_id]) for r in requests]

    def _run(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        progress: bool | None,
        *,
        add_special_tokens: bool,
    ) -> list[RequestOutput]:
        pairs = zip(prompts, _params_list(params, len(prompts)), priority or [0] * len(prompts), strict=True)
        jobs = [self._job(prompt, p, rank, add_special_tokens) for prompt, p, rank in pairs]
        choices = {request.request_id: (job, request) for job, requests in jobs for request in requests}
        texts = {name: Choice(self._tokenizer, request) for name, (_, request) in choices.items()}
        show = self._progress if progress is None else progress
        with ProgressBar("generating", total=len(choices), unit="answers", enabled=show) as bar:

            def take(delta: RequestDelta) -> bool:
                """Add a delta to its output; whether that ended its choice."""
                job, request = choices[delta.request_id]
                _append(job, texts[delta.request_id], delta, request)
                finished = texts[delta.request_id].finished
                bar.advance(int(finished), tokens=len(delta.token_ids))
                return finished

            self._drive([request for _, requests in jobs for request in requests], take)
        return [job for job, _ in jobs]

    def _job(
        self, prompt: Prompt, params: SamplingParams, priority: int, add_special_tokens: bool
    ) -> tuple[RequestOutput, list[EngineRequest]]:
        name = self._name()
        requests = self._input.requests(
            prompt,
            self._input.checked(params),
            request_id=name,
            priority=priority,
            add_special_tokens=add_special_tokens,
        )
        outputs = [CompletionOutput(index=request.choice_index) for request in requests]
        text = prompt if isinstance(prompt, str) else None
        return RequestOutput(name, text, requests[0].prompt_token_ids, outputs), requests

    def _drive(self, requests: Iterable[EngineRequest], take: Callable[[RequestDelta], bool]) -> None:
        """Feed requests as the queue has room, step until all have ended; on an error none stays behind."""
        waiting, open_ids = list(requests)[::-1], set[str]()
        limit = self._engine.config.scheduler.max_queued_requests
        try:
            while waiting or open_ids:
                while waiting and (not limit or self._engine.stats().waiting < limit):
                    request = waiting.pop()
                    self._engine.add(request)
                    open_ids.add(request.request_id)
                for delta in self._engine.step():
                    if delta.request_id in open_ids and take(delta):
                        open_ids.discard(delta.request_id)
                        if delta.finish_reason is None:  # a stop string ended it, which the engine cannot see
                            self._engine.abort(delta.request_id)
        finally:
            for name in open_ids:
                self._engine.abort(name)


def _log_plan(plan: Plan, memory_plan: MemoryPlan) -> None:
    for override in plan.overrides:
        log.info("%s = %s: %s", override.option, override.value, override.reason)
    log.info("memory plan", **asdict(memory_plan))


def _append(job: RequestOutput, choice: Choice, delta: RequestDelta, request: EngineRequest) -> None:
    piece = choice.push(delta)
    output = job.outputs[piece.index]
    output.text += piece.text
    output.token_ids += piece.token_ids
    if piece.logprobs is not None:
        output.logprobs = (output.logprobs or []) + piece.logprobs
    if piece.prompt_logprobs is not None:
        job.prompt_logprobs = piece.prompt_logprobs
    output.finish_reason, output.stop_reason = piece.finish_reason, piece.stop_reason
    job.num_cached_tokens = max(job.num_cached_tokens, delta.num_cached_tokens if not request.choice_index else 0)


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One text, one list of token ids, or a list of either."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [cast("list[int]", items)]
    if any(not isinstance(item, str | Sequence) for item in items):
        raise InvalidRequest("prompts: each must be a text or a list of token ids", param="prompts")
    return cast("list[Prompt]", items)


def _params_list(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None:
        return [SamplingParams()] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise ConfigError("params", f"{len(params)} sets of sampling parameters for {count} prompts")
    return list(params)
