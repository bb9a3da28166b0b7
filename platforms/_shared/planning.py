"""What a plan settles on every kind of device: the element types, and the bytes of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from core.config import GIB, Config
from core.errors import ConfigError, Unsupported
from core.platform import Override
from core.types import DType


@dataclass(frozen=True)
class Served:
    """The element types that a device serves, of models and of the KV cache.

    Weights of another type become `fallback` where the user left it open. `owner` is who has these types, in the plural,
    for people.
    """

    dtypes: tuple[DType, ...]
    kv_dtypes: tuple[DType, ...]
    fallback: DType
    owner: str


def with_dtypes(config: Config, served: Served, overrides: list[Override]) -> Config:
    """The user's types, or for `auto` the one that the weights have, and the model's for the KV cache. Raises Unsupported."""
    dtype = config.model.dtype
    if dtype not in served.dtypes:
        if config.options.dtype != "auto":
            raise Unsupported(f"--dtype {dtype}", _has(served.owner, served.dtypes))
        reason = f"the weights are {dtype}, which {served.owner} do not have"
        dtype = served.fallback
        overrides.append(Override(option="dtype", value=dtype, reason=reason))
    kv_dtype = dtype if config.options.kv_cache_dtype == "auto" else config.cache.dtype
    if kv_dtype not in served.kv_dtypes:
        raise Unsupported(f"--kv-cache-dtype {kv_dtype}", _has(served.owner, served.kv_dtypes))
    return replace(config, model=replace(config.model, dtype=dtype), cache=replace(config.cache, dtype=kv_dtype))


def _has(owner: str, dtypes: tuple[DType, ...]) -> str:
    return f"{owner} have {', '.join(dtypes)}; choose one of them, or leave it to auto"


def with_kv_memory(config: Config, total: int, default: int, reason: str, overrides: list[Override]) -> Config:
    """The bytes that the user grants the KV cache, or `default`, for a `reason`. Raises ConfigError beyond `total`."""
    asked = config.cache.memory_bytes
    if asked is None:
        overrides.append(Override(option="kv_cache_memory", value=f"{default / GIB:.2f}GiB", reason=reason))
    elif asked > total:
        raise ConfigError("--kv-cache-memory", f"{asked} bytes are more than the {total} that this device has")
    return replace(config, cache=replace(config.cache, memory_bytes=default if asked is None else asked))
