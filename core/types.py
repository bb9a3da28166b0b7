"""The nouns that cross the core's seams: requests, step plans, step outputs.

Torch-free. Everything here can travel between processes as msgpack (`msgspec.msgpack`), so the fields are
plain: ints, floats, strings, lists. Token positions count from 0; a *row* is the index of a running request in
the runner's batch state, `0 <= row < max_num_seqs`; a *slot* is one token's place in the KV cache.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Literal

import msgspec

from core.errors import InvalidRequest

FinishReason = Literal["stop", "length", "abort", "deadline", "error"]

#: Physical block 0 of every KV group is never handed out: padding writes go there, and positions that have left a
#: sliding window point to it.
NULL_BLOCK = 0


class DType(enum.StrEnum):
    """Element types by the names that safetensors configs and torch use."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT32 = "int32"
    INT64 = "int64"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE[self]


_ITEMSIZE = {
    DType.FLOAT32: 4, DType.FLOAT16: 2, DType.BFLOAT16: 2, DType.INT32: 4,
    DType.INT64: 8, DType.INT8: 1, DType.UINT8: 1, DType.BOOL: 1,
}  # fmt: skip


# --- sampling ------------------------------------------------------------------------------------------------

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_BAD_WORDS = 1024
#: Characters of all of them: every step holds each word against the end of the answer.
MAX_BAD_WORDS_LENGTH = 16_384

#: What whoever samples, on the device or beside it, may be asked to do: the fields of `SamplingParams` that it has to
#: honour. The others are the scheduler's and the detokenizer's.
SAMPLING_FEATURES = (
    "temperature", "seed", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "min_tokens", "logprobs", "structured_outputs", "allowed_token_ids", "bad_words", "prompt_logprobs",
)  # fmt: skip


_FORMS = ("json", "json_object", "regex", "choice", "grammar")


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The form of an answer, with vLLM's names; exactly one is given. Raises InvalidRequest otherwise.

    `json` is a JSON schema, as an object or its text. `strict`: a keyword of it that cannot be enforced is refused;
    else it is ignored, and the others hold. `grammar` is in llguidance's dialect of Lark.
    """

    json: str | dict[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        given = [name for name in _FORMS if self._has(name)]
        if len(given) != 1:
            what = " and ".join(given) if given else "none of json, json_object, regex, choice and grammar"
            message = f"structured_outputs: exactly one form must be given, not {what}"
            raise InvalidRequest(message, param="structured_outputs")

    def _has(self, name: str) -> bool:
        return getattr(self, name) not in (None, False, ())

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return next(name for name in _FORMS if self._has(name))


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How to choose tokens, with the names and meanings of OpenAI's API and vLLM's extras.

    Raises `InvalidRequest` naming the field when a value is out of its range (NaN is out of every range).
    """

    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None  # nothing else is chosen; None: any token may be
    bad_words: tuple[str, ...] = ()  # texts that the answer may not hold, as far as tokens can tell (vLLM's rule)
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()  # their spellings; set at admission
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16  # None: until the context is full
    logprobs: int | None = None  # how many alternatives beside the chosen token; None: no logprobs at all
    prompt_logprobs: int | None = None  # the same for the prompt's tokens but the first; they are then computed anew
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = False  # a space around each special token that is shown
    extra_args: dict[str, Any] = {}  # for logits processors and samplers that plugins add
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        _check_range("n", self.n, 1, MAX_CHOICES)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**63 - 1)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_range("top_k", self.top_k, -1, 2**31 - 1)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 100.0, low_open=True)
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)
        if self.allowed_token_ids == ():
            raise InvalidRequest(
                "allowed_token_ids: the list is empty, so no token could come", param="allowed_token_ids"
            )
        if len(self.bad_words) > MAX_BAD_WORDS or any(not word.strip() for word in self.bad_words):
            message = f"bad_words: at most {MAX_BAD_WORDS} words, none of them empty; got {len(self.bad_words)}"
            raise InvalidRequest(message, param="bad_words")
        if (length := sum(map(len, self.bad_words))) > MAX_BAD_WORDS_LENGTH:
            message = f"bad_words: at most {MAX_BAD_WORDS_LENGTH} characters in all, got {length}"
            raise InvalidRequest(message, param="bad_words")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"stop: at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}", param="stop")
        if any(not text for text in self.stop):
            raise InvalidRequest("stop: an empty string would end every answer at once; remove it", param="stop")
        _check_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise InvalidRequest(
                    f"min_tokens: {self.min_tokens} is more than max_tokens, {self.max_tokens}", param="min_tokens"
                )
        for name, alternatives in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if alternatives is not None:
                _check_range(name, alternatives, 0, MAX_LOGPROBS)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    def features(self) -> list[str]:
        """Which of `SAMPLING_FEATURES` these parameters ask for."""
        used = {
            "temperature": self.temperature > 0.0,
            "seed": self.seed is not None,
            "top_p": self.top_p < 1.0,
            "top_k": self.top_k > 0,
            "min_p": self.min_p > 0.0,
            "presence_penalty": self.presence_penalty != 0.0,
            "frequency_penalty": self.frequency_penalty != 0.0,
            "repetition_penalty": self.repetition_penalty != 1.0,
            "logit_bias": bool(self.logit_bias),
            "allowed_token_ids": self.allowed_token_ids is not None,
            "bad_words": bool(self.bad_words),
            "min_tokens": self.min_tokens > 0,
            "logprobs": self.logprobs is not None,
            "prompt_logprobs": self.prompt_logprobs is not None,
            "structured_outputs": self.structured_outputs is not None,
        }
        return [feature for feature in SAMPLING_FEATURES if used[feature]]


def _check_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    if math.isnan(value) or not (low < value if low_open else low <= value) or value > high:
        bracket = "(" if low_open else "["
        raise InvalidRequest(f"{name}: {value} is not in {bracket}{low}, {high}]", param=name)


# --- pooling -------------------------------------------------------------------------------------------------

#: What is done to a pooled vector. normalize: divided by its Euclidean length.
PoolingActivation = Literal["none", "normalize", "sigmoid", "softmax"]


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a request wants of a model that pools: its vector, cut to `dimensions`, after `activation`."""

    activation: PoolingActivation = "none"
    dimensions: int | None = None  # None: all
    segment_start: int | None = None  # the position where the second text of a pair begins; None: there is one text


# --- requests ------------------------------------------------------------------------------------------------


class EngineRequest(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One choice of one client request, as the engine sees it: tokenized, validated, resolved.

    A client request with n > 1 becomes n of these; choices 1…n-1 name choice 0 in `parent_id`, so that the prompt's
    KV is computed once. `output_token_ids` holds what was emitted before an engine was replaced: the request goes
    on from there. `arrival_time` and `deadline` are seconds of `time.monotonic()`, which on one machine all
    processes share.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams  # seed and max_tokens are set (never None)
    choice_index: int = 0
    parent_id: str | None = None
    output_token_ids: list[int] = []
    priority: int = 0  # lower runs earlier, under the `priority` policy
    arrival_time: float = 0.0
    deadline: float | None = None
    cache_salt: str = ""
    pooling: PoolingParams | None = None  # the answer is a vector, and no token


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities at one position, from the unmodified distribution (before temperature).

    `top` holds (token id, logprob), most likely first; `rank` of the chosen token counts from 1.
    """

    logprob: float
    rank: int
    top: list[tuple[int, float]] = []


class RequestDelta(msgspec.Struct, frozen=True, array_like=True):
    """What one turn of the engine gave one request. `finish_reason` is set on the last delta only."""

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the stop token, where one of `stop_token_ids` ended it
    logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0  # prompt tokens whose KV was found, not computed
    error: str | None = None
    queue_seconds: float = 0.0  # from arrival until it first ran; with its first token
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the prompt's tokens from the second on; likewise
    pooled: bytes | None = None  # the vector of a request that pools: float32, little-endian


# --- the KV cache --------------------------------------------------------------------------------------------


class KVGroupSpec(msgspec.Struct, frozen=True):
    """Layers that share one block table: equal shapes, equal attention span."""

    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # sliding window in tokens, the token itself included; None: full attention


class KVOp(msgspec.Struct, frozen=True, array_like=True):
    """A movement of KV blocks that the executor makes before the step's forward, in list order.

    copy: block `src` of `group` to block `dst`, all its layers. load: bring what connector key `key` names
    into `dst`; save: the other way, from `src`.
    """

    kind: Literal["copy", "load", "save"]
    group: int
    src: int = NULL_BLOCK
    dst: int = NULL_BLOCK
    key: bytes = b""
    request_id: str = ""


# --- one step ------------------------------------------------------------------------------------------------


class Admission(msgspec.Struct, frozen=True, array_like=True):
    """Everything the runner must know of a request that gets a row: a new one or one back from preemption."""

    row: int
    request_id: str
    token_ids: list[int]  # prompt, then outputs so far
    num_prompt_tokens: int
    num_computed_tokens: int  # their KV is already in the blocks
    block_ids: list[list[int]]  # [group][index]
    params: SamplingParams
    choice_index: int
    pooling: PoolingParams | None = None


class StepPlan(msgspec.Struct, array_like=True):
    """One step as a delta to the runner's state. Applied in this order: released, admitted, blocks, kv_ops, forward.

    `rows[i]` computes its next `num_tokens[i]` tokens. A row whose computed tokens then reach all its known tokens
    samples one more, which the runner appends to its own state: the scheduler need not know its value to plan the
    next step (asynchronous scheduling). A request reads only KV written by earlier steps, by itself, or by
    requests listed *before* it in this plan; a platform that splits a step keeps that order.
    """

    step: int
    released: list[int]  # rows that ended or were preempted since the last plan
    admitted: list[Admission]
    rows: list[int]
    num_tokens: list[int]
    blocks: list[tuple[int, int, int, int]]  # (row, group, index in the block table, block id)
    kv_ops: list[KVOp]


class StepOutput(msgspec.Struct, array_like=True):
    """What a step sampled: `token_ids[i]` for `rows[i]`, and the logprobs of those rows that asked for them."""

    step: int
    rows: list[int]
    token_ids: list[int]
    logprobs: dict[int, TokenLogprobs] = {}  # by row
    kv_loaded: list[str] = []  # requests whose blocks a connector has brought
    kv_failed: list[str] = []  # requests whose blocks it could not bring: compute them
    failed: dict[int, str] = {}  # by row: why its request cannot go on; its token counts for nothing
    #: By row: tokens that the form of its answer forces behind the sampled one. They belong to the row like that one, and
    #: nothing is sampled in their places, also not by steps that are planned already.
    forced: dict[int, list[int]] = {}
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}  # by row that asked, with its first token: see `RequestDelta`
    pooled: dict[int, bytes] = {}  # by row, of the requests that pool: float32, little-endian; their token is 0


class KVTransferStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a KV connector has been given and has brought since the engine started, in blocks of one group each."""

    saved: int = 0
    loaded: int = 0
    failed: int = 0  # saves and loads that raised or hung, loads that brought nothing or something else
    dropped: int = 0  # saves that were not tried: too many waited, or the connector had just failed


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the engine started, and gauges of this moment."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # 0 … 1, of the blocks
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # of those, found
    external_prefix_queries: int = 0  # prompt tokens that a KV connector was asked for
    external_prefix_hits: int = 0  # of those, brought
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    kv_transfers: KVTransferStats = KVTransferStats()
