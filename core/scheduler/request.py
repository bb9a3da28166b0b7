"""A request as the scheduler keeps it, from `add` to its last token."""

from __future__ import annotations

import enum

from core.cache import BlockTables, CacheManager
from core.config import SchedulerConfig
from core.errors import InvalidRequest, PlatformError
from core.types import Admission, EngineRequest, FinishReason, RequestDelta, StepOutput


class Status(enum.Enum):
    """Where a request stands. Exactly the WAITING ones are in the waiting queue."""

    PREPARING = enum.auto()  # the grammar of its answer is being compiled
    WAITING = enum.auto()
    WAITING_FOR_PARENT = enum.auto()  # choice 0 has not computed the prompt that they share
    WAITING_FOR_KV = enum.auto()  # a connector is filling its blocks
    RUNNING = enum.auto()  # has a row
    PREEMPTED = enum.auto()  # without row and blocks, and a token of it is still in flight
    FINISHED = enum.auto()


class Request:
    """One request's state.

    `token_ids` is prompt and outputs whose values are known. `num_tokens` also counts tokens that steps in flight
    will sample; `num_computed` those whose KV some planned step has computed, so `num_tokens - num_computed` are
    to be computed next. `key` orders requests, lowest first; no two are equal.
    """

    __slots__ = (
        "blocks",
        "children",
        "choice_index",
        "deadline",
        "forkable",
        "is_queued",
        "key",
        "kv_found",
        "max_length",
        "min_length",
        "num_cached",
        "num_computed",
        "num_prompt",
        "num_tokens",
        "params",
        "parent",
        "pooling",
        "queue_seconds",
        "request_id",
        "row",
        "status",
        "stop_ids",
        "token_ids",
        "wants_prompt_logprobs",
        "was_admitted",
    )

    def __init__(
        self,
        request: EngineRequest,
        blocks: BlockTables,
        key: tuple[int, float, int],
        eos_token_ids: frozenset[int],
        max_model_len: int,
    ) -> None:
        params = request.params
        self.request_id = request.request_id
        self.params = params
        self.pooling = request.pooling
        self.choice_index = request.choice_index
        self.deadline = request.deadline
        self.key = key
        self.blocks = blocks
        self.status = Status.WAITING
        self.row = -1

        self.token_ids = [*request.prompt_token_ids, *request.output_token_ids]
        self.num_prompt = len(request.prompt_token_ids)
        self.num_tokens = len(self.token_ids)
        self.num_computed = 0
        self.num_cached = 0  # prompt tokens found in the cache; until a delta has reported them
        self.queue_seconds = 0.0  # until it was first admitted; until a delta has reported them
        max_tokens = max_model_len if params.max_tokens is None else params.max_tokens
        self.max_length = min(self.num_prompt + max_tokens, max_model_len)
        if self.pooling is not None:  # what it gives comes in place of one token, which takes no position
            self.max_length = self.num_prompt + 1
        self.min_length = self.num_prompt + params.min_tokens
        self.stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self.stop_ids = self.stop_ids | eos_token_ids if self.stop_ids else eos_token_ids

        self.parent: Request | None = None
        self.children: list[Request] = []  # waiting for this one
        self.forkable = False  # an earlier step has computed the whole prompt, and its blocks are held
        # Until its first token: with it they are told.
        self.wants_prompt_logprobs = params.prompt_logprobs is not None and not request.output_token_ids
        # Blocks, from the first, that are here or that a connector has; None: not asked yet; 0: it has had its turn.
        self.kv_found: int | None = 0 if self.wants_prompt_logprobs else None
        # Counts against the queue's limit: not the other choices, nor what was let in before a restart.
        self.is_queued = request.parent_id is None and not request.output_token_ids
        self.was_admitted = False

    def finish_reason(self, token_id: int) -> FinishReason | None:
        """Why `token_id`, the last of `token_ids`, ends the request, if it does."""
        length = len(self.token_ids)
        if token_id in self.stop_ids and length >= self.min_length:
            return "stop"
        return "length" if length >= self.max_length else None

    def extend(self, token_ids: list[int]) -> FinishReason | None:
        """Take in tokens that are known now, and why the last of them ends the request, if it does. Of `token_ids` those
        behind the end are removed."""
        for count, token_id in enumerate(token_ids, start=1):
            self.token_ids.append(token_id)
            if (reason := self.finish_reason(token_id)) is not None:
                del token_ids[count:]
                return reason
        # Beyond the sampled one that was counted when its step was planned, a form forced some.
        self.num_tokens = max(self.num_tokens, len(self.token_ids))
        return None

    def told(self, token_ids: list[int], reason: FinishReason | None, row: int, output: StepOutput) -> RequestDelta:
        """The delta for `token_ids`, which `output` has for `row`, with what the first one tells beside it."""
        num_cached, self.num_cached = self.num_cached, 0
        queue_seconds, self.queue_seconds = self.queue_seconds, 0.0
        return RequestDelta(
            self.request_id,
            token_ids,
            reason,
            token_ids[-1] if reason == "stop" and token_ids[-1] in self.params.stop_token_ids else None,
            [output.logprobs[row]] if row in output.logprobs else None,
            num_cached,
            None,
            queue_seconds,
            output.prompt_logprobs.get(row),
        )

    def admission(self) -> Admission:
        """What the runner must know, now that the request has a row and blocks up to `num_computed`."""
        return Admission(
            row=self.row,
            request_id=self.request_id,
            token_ids=list(self.token_ids),
            num_prompt_tokens=self.num_prompt,
            num_computed_tokens=self.num_computed,
            block_ids=[list(table) for table in self.blocks.tables],
            params=self.params,
            choice_index=self.choice_index,
            pooling=self.pooling,
        )

    def pooled_delta(self, vector: bytes | None) -> RequestDelta:
        """The one delta of a request that pools. Raises PlatformError where the step gave no vector."""
        if vector is None:
            raise PlatformError("a step of a model that pools gave no vector: the platform's executor cannot pool")
        return RequestDelta(
            self.request_id,
            [],
            "stop",
            num_cached_tokens=self.num_cached,
            queue_seconds=self.queue_seconds,
            pooled=vector,
        )

    def has_prompt_of(self, other: Request) -> bool:
        """Whether the KV of both prompts is the same."""
        count = self.num_prompt
        return (
            count == other.num_prompt
            and self.blocks.root == other.blocks.root
            and self.token_ids[:count] == other.token_ids[:count]
        )


def check_limits(request: Request, config: SchedulerConfig, cache: CacheManager) -> None:
    """Raise InvalidRequest for what could never run to its end."""
    if request.num_prompt == 0:
        raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
    if request.num_prompt >= config.max_model_len + (request.pooling is not None):
        raise InvalidRequest(
            f"the prompt has {request.num_prompt} tokens, which leaves no room for an answer within the context of "
            f"{config.max_model_len}; shorten it or raise --max-model-len",
            param="prompt",
        )
    if request.num_tokens >= request.max_length:
        raise InvalidRequest(
            f"output_token_ids: the answer is complete with {request.num_tokens - request.num_prompt} tokens",
            param="output_token_ids",
        )
    if not config.enable_chunked_prefill and request.num_prompt > config.max_num_batched_tokens:
        raise InvalidRequest(
            f"the prompt has {request.num_prompt} tokens, more than one step computes "
            f"(--max-num-batched-tokens {config.max_num_batched_tokens}); shorten it, raise that, or set "
            "--enable-chunked-prefill",
            param="prompt",
        )
    if not cache.fits(request.max_length - 1, config.max_num_batched_tokens):
        raise InvalidRequest(
            f"prompt and answer of up to {request.max_length} tokens need more KV blocks than there are; lower "
            "max_tokens or raise --kv-cache-memory",
            param="max_tokens",
        )
