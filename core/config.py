"""The configuration: frozen, resolved once from the user's options, then only read.

`Options` is what a user may set, by CLI flag (`--max-num-seqs`) or keyword (`LLM(max_num_seqs=…)`): one table for
both. `resolve` turns it into a `Config`; a platform's plan may replace parts of that with a new object and a
reason for each override (`core.platform.Plan`). Torch-free.
"""

from __future__ import annotations

import difflib
import os
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import ConfigError, UnsupportedModel
from core.types import DType

GIB = 1 << 30

Policy = Literal["fcfs", "priority"]
UnknownFields = Literal["auto", "ignore", "warn", "error"]


# --- what the user may set -----------------------------------------------------------------------------------


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every engine option. None means: decided by `resolve` or by the platform's plan, which say how."""

    # model
    revision: Annotated[str | None, Meta(description="branch, tag or commit on the hub")] = None
    tokenizer: Annotated[str | None, Meta(description="directory or file to read the tokenizer from; default: the model's")] = None
    chat_template: Annotated[str | None, Meta(description="a jinja file, or the template itself; default: the model's")] = None
    served_model_name: Annotated[str | None, Meta(description="the name clients use; default: MODEL")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Meta(description="type of weights and activations")
    ] = "auto"
    max_model_len: Annotated[int | None, Meta(ge=1, description="longest prompt plus answer, in tokens; default: the model's")] = None
    load_format: Annotated[
        Literal["auto", "dummy"], Meta(description="dummy: seeded random weights of the model's shapes")
    ] = "auto"
    seed: Annotated[int, Meta(ge=0, description="seed of everything that has none of its own")] = 0

    # platform
    platform: Annotated[str | None, Meta(description="run on this platform or fail; default: the best available")] = None
    allow_platform_fallback: Annotated[bool, Meta(description="go on with another platform when one is broken")] = False
    platform_opt: Annotated[tuple[str, ...], Meta(description="NAME.KEY=VALUE, an option of a platform (repeatable)")] = ()
    op_fallback: Annotated[
        Literal["error", "reference"], Meta(description="what to do where a platform lacks an op")
    ] = "error"
    compile: Annotated[bool, Meta(description="let the platform compile the recorded program")] = True
    tensor_parallel_size: Annotated[int, Meta(ge=1, description="devices that share each layer")] = 1
    pipeline_parallel_size: Annotated[int, Meta(ge=1, description="devices that share the stack of layers")] = 1

    # KV cache
    block_size: Annotated[int | None, Meta(ge=1, le=1024, description="tokens in a KV block; default: the platform's")] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Meta(description="type of the KV cache; auto: the model's")
    ] = "auto"
    kv_cache_memory: Annotated[str | None, Meta(description="KV cache size, like 4GiB or 512MiB; default: what fits, see `core plan`")] = None
    enable_prefix_caching: Annotated[bool, Meta(description="reuse the KV of equal prompt beginnings")] = True

    # scheduler
    max_num_seqs: Annotated[int | None, Meta(ge=1, description="requests that run together; default: the platform's")] = None
    max_num_batched_tokens: Annotated[int | None, Meta(ge=1, description="tokens computed in one step; default: the platform's")] = None
    scheduling_policy: Annotated[Policy, Meta(description="order of the waiting requests")] = "fcfs"
    enable_chunked_prefill: Annotated[bool, Meta(description="split long prompts over steps")] = True
    max_queued_requests: Annotated[int, Meta(ge=0, description="waiting requests beyond which new ones get HTTP 429; 0: no limit")] = 4096


# --- what the engine reads -----------------------------------------------------------------------------------


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which model, and the facts that every part needs of it."""

    name: str  # what clients call it
    path: str  # directory or .gguf file on this machine
    format: Literal["huggingface", "gguf"]
    architecture: str  # as in `config.json`: LlamaForCausalLM
    hf_config: dict[str, Any]  # `config.json`, or what a GGUF header says in the same words
    dtype: DType
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    tokenizer_path: str
    chat_template: str | None = None  # overrides the tokenizer's own
    default_sampling: dict[str, Any] = {}  # from `generation_config.json`
    load_format: Literal["auto", "dummy"] = "auto"
    fingerprint: str = ""  # identity of the weights: part of every block hash


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache. `memory_bytes` is None until the platform's plan or its measurement fixes it."""

    block_size: int = 16
    dtype: DType = DType.FLOAT32
    memory_bytes: int | None = None
    enable_prefix_caching: bool = True


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one step and of the queue."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_model_len: int = 2048
    policy: Policy = "fcfs"
    enable_chunked_prefill: bool = True
    max_queued_requests: int = 4096  # 0: no limit
