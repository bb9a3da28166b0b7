"""Real servers: one of the demo model, and one of a tiny model with room for one request at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_server import ONE_THREAD, RealServer, real_server

_DEMO = ("--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory", "256MiB", *ONE_THREAD)


@pytest.fixture(scope="session")
def demo_server(demo_model: str) -> Iterator[RealServer]:
    with real_server(demo_model, *_DEMO) as server:
        yield server


@pytest.fixture(scope="session")
def long_tiny_model(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a context so long that a request can take as long as a test needs."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(tiny_model("llama"), directory)
    config = directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 16_384}))
    return directory


@pytest.fixture(scope="session")
def single_server(long_tiny_model: Path) -> Iterator[RealServer]:
    """One request runs, two may wait, the more urgent one first."""
    options = ("--max-num-seqs", "1", "--max-queued-requests", "2", "--scheduling-policy", "priority")
    with real_server(str(long_tiny_model), *options, "--kv-cache-memory", "64MiB", *ONE_THREAD) as server:
        yield server
