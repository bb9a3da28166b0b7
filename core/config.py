"""The configuration: frozen, resolved once from the user's options, then only read.

`Options` is what a user may set, by CLI flag (`--max-num-seqs`) or keyword (`LLM(max_num_seqs=…)`): one table for
both. `resolve` turns it into a `Config`; a platform's plan may replace parts of that with a new object and a
reason for each override (`core.platform.Plan`). Torch-free.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from core.errors import ConfigError
from core.extensions import NO_EXTENSIONS, Extension, Extensions
from core.pooling import Convert, PoolerConfig, Runner, longest_prompt, pooler_of, usual_prompt
from core.types import SAMPLING_FEATURES, DType

if TYPE_CHECKING:
    from core.weights.source import ModelInfo

GIB = 1 << 30

Policy = Literal["fcfs", "priority"]
#: How weights are kept. stored: in a GGUF file's own blocks; int8, int4: quantised as they are loaded.
Quantization = Literal["none", "stored", "int8", "int4"]
Positive = Annotated[int, Meta(ge=1)]


# --- what the user may set -----------------------------------------------------------------------------------


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every engine option. None means: decided by `resolve` or by the platform's plan, which say how."""

    # model
    revision: Annotated[str | None, Meta(description="branch, tag or commit on the hub")] = None
    tokenizer: Annotated[
        str | None, Meta(description="directory or file to read the tokenizer from; default: the model's")
    ] = None
    chat_template: Annotated[
        str | None, Meta(description="a jinja file, or the template itself; default: the model's")
    ] = None
    served_model_name: Annotated[str | None, Meta(description="the name clients use; default: MODEL")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Meta(description="type of weights and activations")
    ] = "auto"
    quantization: Annotated[
        Literal["auto", "none", "gguf", "int8", "int4"],
        Meta(
            description="how weights are kept; auto: as the platform keeps that file best; none: in --dtype; gguf: in a "
            "GGUF file's own blocks; int8, int4: quantised as they are loaded"
        ),
    ] = "auto"
    max_model_len: Annotated[
        Positive | None, Meta(description="longest prompt plus answer, in tokens; default: the model's")
    ] = None
    load_format: Annotated[
        Literal["auto", "dummy"], Meta(description="dummy: seeded random weights of the model's shapes")
    ] = "auto"
    hf_overrides: Annotated[
        str | None, Meta(description="""JSON that replaces fields of config.json, like {"is_matryoshka": true}""")
    ] = None
    runner: Annotated[
        Runner, Meta(description="generate gives tokens, pooling vectors or scores; auto: what the model is made for")
    ] = "auto"
    convert: Annotated[
        Convert, Meta(description="embed: let a model that generates give embeddings; auto: with --runner pooling")
    ] = "auto"
    pooler_config: Annotated[
        str | None,
        Meta(description="""JSON: pooling_type MEAN, LAST or CLS, normalize true or false; default: the model's"""),
    ] = None
    seed: Annotated[int, Meta(ge=0, description="seed of everything that has none of its own")] = 0

    # platform
    platform: Annotated[str | None, Meta(description="run on this platform or fail; default: the best available")] = (
        None
    )
    allow_platform_fallback: Annotated[bool, Meta(description="go on with another platform when one is broken")] = False
    platform_opt: Annotated[
        tuple[str, ...], Meta(description="NAME.KEY=VALUE, an option of a platform (repeatable)")
    ] = ()
    op_fallback: Annotated[
        Literal["error", "reference"], Meta(description="what to do where a platform lacks an op")
    ] = "error"
    compile: Annotated[bool, Meta(description="let the platform compile the recorded program")] = True
    tensor_parallel_size: Annotated[int, Meta(ge=1, description="devices that share each layer")] = 1
    pipeline_parallel_size: Annotated[int, Meta(ge=1, description="devices that share the stack of layers")] = 1

    # plugins
    plugins: Annotated[
        str, Meta(description="plugins of the group core.plugins to load: all, none, or names with commas between")
    ] = "all"
    plugin_opt: Annotated[tuple[str, ...], Meta(description="NAME.KEY=VALUE, an option of a plugin (repeatable)")] = ()

    # sampling
    logits_processor: Annotated[
        tuple[str, ...], Meta(description="change logits by this processor of a plugin (repeatable, in that order)")
    ] = ()
    sampler: Annotated[str | None, Meta(description="choose tokens by this sampler of a plugin; default: our own")] = (
        None
    )

    # KV cache
    block_size: Annotated[Positive | None, Meta(description="tokens in a KV block; default: the platform's")] = None
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        Meta(description="type of the KV cache; auto: the model's"),
    ] = "auto"
    kv_cache_memory: Annotated[
        str | None, Meta(description="KV cache size, like 4GiB or 512MiB; default: what fits, see `core plan`")
    ] = None
    enable_prefix_caching: Annotated[bool, Meta(description="reuse the KV of equal prompt beginnings")] = True
    kv_connector: Annotated[
        str | None, Meta(description="keep KV in, and find it in, this store of a plugin as well; default: none")
    ] = None

    # scheduler
    max_num_seqs: Annotated[
        Positive | None, Meta(description="requests that run together; default: the platform's")
    ] = None
    max_num_batched_tokens: Annotated[
        Positive | None, Meta(description="tokens computed in one step; default: the platform's")
    ] = None
    scheduling_policy: Annotated[Policy, Meta(description="order of the waiting requests")] = "fcfs"
    enable_chunked_prefill: Annotated[bool, Meta(description="split long prompts over steps")] = True
    max_queued_requests: Annotated[
        int, Meta(ge=0, description="waiting requests beyond which new ones get HTTP 429; 0: no limit")
    ] = 4096


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
    quantization: Quantization = "none"
    pooler: PoolerConfig | None = None  # None: it generates


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache. `memory_bytes` is None until the platform's plan or its measurement fixes it."""

    block_size: int = 16
    dtype: DType = DType.FLOAT32
    memory_bytes: int | None = None
    enable_prefix_caching: bool = True
    connector: Extension | None = None  # of `Extensions.kv_connectors`


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one step and of the queue."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_model_len: int = 2048
    policy: Policy = "fcfs"
    enable_chunked_prefill: bool = True
    max_queued_requests: int = 4096  # 0: no limit


class PlatformConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which platform was chosen, with the options given to it, and how strict to be with it."""

    name: str = ""  # empty until chosen
    options: dict[str, str] = {}
    op_fallback: Literal["error", "reference"] = "error"
    compile: bool = True
    sampling: tuple[str, ...] = SAMPLING_FEATURES  # those that the platform declares, once it is planned


class ParallelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the model is spread over devices."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def world_size(self) -> int:
        """Devices that one copy of the model takes."""
        return self.tensor * self.pipeline


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All that the engine and the frontends read. `options` are the user's own words, for the platform's plan."""

    options: Options
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    platform: PlatformConfig = PlatformConfig()
    parallel: ParallelConfig = ParallelConfig()
    extensions: Extensions = NO_EXTENSIONS


# --- resolving -----------------------------------------------------------------------------------------------


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to a misspelt one, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_options(given: dict[str, Any]) -> Options:
    """Options from keywords. Raises ConfigError on an unknown name or a wrong value."""
    known = list(Options.__struct_fields__)
    for name in given:
        if name not in known:
            raise ConfigError(name, f"no such option{nearest(name, known)}")
    try:
        return msgspec.convert(given, Options, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise ConfigError(path.rstrip("`") or "options", message) from error


_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(option: str, text: str) -> int:
    """`4GiB`, `512 MiB`, `1.5gb`, `1048576` as bytes. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(option, f"{text!r} is not a size; write it like 4GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_named_options(flag: str, pairs: tuple[str, ...], name: str) -> dict[str, str]:
    """Of the `NAME.KEY=VALUE` pairs given with `flag`, those of `name`. Raises ConfigError on a pair of another form."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        owner, dot, key = key.partition(".")
        if not (equals and dot and owner and key):
            raise ConfigError(flag, f"{pair!r} is not of the form NAME.KEY=VALUE")
        if owner == name:
            options[key] = value
    return options


def resolve(model: str | None, options: Options, extensions: Extensions = NO_EXTENSIONS) -> Config:
    """Read the model's own description and settle every option that does not depend on the platform.

    `extensions` is what the plugins add (`core.plugins.extensions`). Downloads the model first where it is a hub name.
    Raises ModelError, ConfigError.
    """
    _check_names("--logits-processor", options.logits_processor, extensions.logits_processors)
    _check_names("--sampler", (options.sampler,) if options.sampler else (), extensions.samplers)
    if options.sampler and options.logits_processor:
        raise ConfigError("--logits-processor", "a --sampler of a plugin does without; drop one of the two")
    _check_names("--kv-connector", (options.kv_connector,) if options.kv_connector else (), extensions.kv_connectors)
    if options.kv_connector and not options.enable_prefix_caching:
        raise ConfigError("--kv-connector", "what it brings is found as a prefix; set --enable-prefix-caching")
    from core.weights import quantized, source  # reading headers; nothing is loaded

    name = model if model is not None else source.default_model()
    found = source.locate(name, revision=options.revision, weights=options.load_format != "dummy")
    info = source.read_info(found, overrides=options.hf_overrides)
    quantized.quantization_scheme(info.hf_config, extensions.quantization_schemes)
    pooler = _pooler(options, info, found.path, extensions)
    longest = longest_prompt(info.architecture, info.hf_config)
    max_model_len = options.max_model_len or min(longest, (pooler and usual_prompt(found.path)) or longest)
    if max_model_len > longest:
        raise ConfigError("max_model_len", f"{max_model_len} is more than the {longest} positions this model knows")
    dtype = _dtype(options.dtype, info.hf_config, "bfloat16" if info.format == "gguf" else "float32")
    return Config(
        options=options,
        model=ModelConfig(
            name=options.served_model_name or (name if model is not None else found.path.stem),
            path=str(found.path),
            format=info.format,
            architecture=info.architecture,
            hf_config=info.hf_config,
            dtype=dtype,
            max_model_len=max_model_len,
            vocab_size=int(info.hf_config["vocab_size"]),
            eos_token_ids=tuple(info.eos_token_ids),
            tokenizer_path=options.tokenizer or str(found.path),
            chat_template=_chat_template(options.chat_template),
            default_sampling=_default_sampling(info.generation_config),
            load_format=options.load_format,
            fingerprint=info.fingerprint,
            quantization=_quantization(options, info.format),
            pooler=pooler,
        ),
        cache=CacheConfig(
            block_size=options.block_size or 16,
            dtype=dtype if options.kv_cache_dtype == "auto" else DType(options.kv_cache_dtype),
            memory_bytes=parse_bytes("--kv-cache-memory", options.kv_cache_memory) if options.kv_cache_memory else None,
            enable_prefix_caching=options.enable_prefix_caching and not (pooler and pooler.whole),
            connector=extensions.kv_connectors[options.kv_connector] if options.kv_connector else None,
        ),
        scheduler=_scheduler(options, max_model_len, chunked=not (pooler and pooler.whole)),
        platform=PlatformConfig(op_fallback=options.op_fallback, compile=options.compile),
        parallel=ParallelConfig(tensor=options.tensor_parallel_size, pipeline=options.pipeline_parallel_size),
        extensions=extensions,
    )


def _check_names(flag: str, names: Iterable[str], known: Mapping[str, Extension]) -> None:
    for name in names:
        if name not in known:
            listed = f"known: {', '.join(sorted(known))}" if known else "no plugin adds one"
            raise ConfigError(flag, f"there is no {name!r}{nearest(name, list(known))} ({listed})")


def _pooler(options: Options, info: ModelInfo, path: Path, extensions: Extensions) -> PoolerConfig | None:
    return pooler_of(
        info.architecture,
        info.hf_config,
        path,
        runner=options.runner,
        convert=options.convert,
        given=options.pooler_config,
        generates=info.architecture in extensions.models,
    )


def _scheduler(options: Options, max_model_len: int, *, chunked: bool) -> SchedulerConfig:
    """A step has room for a token of every request, and where prompts are not `chunked` for the longest of them."""
    seqs = options.max_num_seqs or 64
    chunked = chunked and options.enable_chunked_prefill
    least = seqs if chunked else max(seqs, max_model_len)
    tokens = options.max_num_batched_tokens or max(512, least)
    if tokens < least:
        why = "--max-num-seqs" if tokens < seqs else "the longest prompt, which is computed in one step"
        raise ConfigError("--max-num-batched-tokens", f"{tokens} is less than the {least} of {why}")
    return SchedulerConfig(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        max_model_len=max_model_len,
        policy=options.scheduling_policy,
        enable_chunked_prefill=chunked,
        max_queued_requests=options.max_queued_requests,
    )


def _dtype(wanted: str, hf_config: dict[str, Any], unsaid: str) -> DType:
    """`auto` is the type of the weights on disk; a platform's plan may say otherwise, with its reason."""
    if wanted != "auto":
        return DType(wanted)
    stored = str(hf_config.get("dtype") or hf_config.get("torch_dtype") or unsaid).removeprefix("torch.")
    return DType(stored) if stored in ("float32", "bfloat16", "float16") else DType.BFLOAT16


def _quantization(options: Options, format: str) -> Quantization:
    """`auto` keeps a file's blocks, unless the user asked for weights of one type or for random ones, or the platform's
    plan says otherwise."""
    has_blocks = format == "gguf" and options.load_format != "dummy"
    if options.quantization == "auto":
        return "stored" if has_blocks and options.dtype == "auto" else "none"
    if options.quantization != "gguf":
        return options.quantization
    if not has_blocks:
        raise ConfigError("--quantization", "gguf keeps the blocks of a GGUF file, and these weights come from none")
    return "stored"


def _chat_template(option: str | None) -> str | None:
    if option is None or "{" in option:
        return option
    try:
        return Path(option).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("--chat-template", f"cannot read {option!r}: {error.strerror}") from error


def _default_sampling(generation_config: dict[str, Any]) -> dict[str, Any]:
    """The sampling defaults that a model's authors ship with it, where we have a parameter of that name."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: generation_config[name] for name in names if generation_config.get(name) is not None}
