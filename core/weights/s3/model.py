"""Which objects under a prefix are a model, and where its copy lies."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from core.errors import ModelNotFound
from core.weights.hub import DESCRIPTION, UNWANTED, WEIGHTS
from core.weights.s3.store import CONNECTIONS, Location, Store
from core.weights.s3.transfer import fetch


def download_model(url: str, directory: Path | None = None, *, weights: bool) -> Path:
    """The directory with the model under `s3://bucket/prefix`, fetched as far as it is not there.

    `directory` is where to; None is the cache. Without `weights` only the description is fetched. Raises
    `ModelNotFound` and `WeightError`.
    """
    location = Location.of(url)
    store = Store(location.bucket)
    names = store.names(location.key)
    patterns = DESCRIPTION + WEIGHTS if weights else DESCRIPTION
    wanted = [name for name in names if _fits(name, patterns) and not _fits(name, UNWANTED)]
    if "config.json" not in wanted:
        raise ModelNotFound(f"{location} holds no config.json{_hint(location, names)}")
    if weights and not any(_fits(name, WEIGHTS) for name in wanted):
        raise ModelNotFound(f"{location} holds no weights; they would be .safetensors files beside its config.json")
    _download(store, [Location(location.bucket, _join(location.key, name)) for name in wanted], directory, location)
    return directory or cached(location)


def download_file(url: str, directory: Path | None = None) -> Path:
    """The one object `s3://bucket/path/file.gguf`, fetched unless it is there. Raises as `download_model` does."""
    location = Location.of(url)
    folder = Location(location.bucket, location.key.rpartition("/")[0])
    _download(Store(location.bucket), [location], directory, folder)
    return (directory or cached(folder)) / location.key.rpartition("/")[2]


def cached(location: Location) -> Path:
    """Where the cache has what lies under a location: beside the hub's, so that one volume holds both."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home), "s3", location.bucket, *location.key.split("/"))


def _download(store: Store, objects: list[Location], directory: Path | None, what: Location) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        stored = list(pool.map(store.describe, objects))
    fetch(store, stored, directory or cached(what), str(what))


def _fits(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


def _hint(location: Location, names: list[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"; did you mean s3://{location.bucket}/{_join(location.key, gguf[0])}?"
    if not names:
        return ": there is nothing under that prefix"
    return ": it is not a model in Hugging Face's format"
