"""Fixtures that several folders share: real and tiny models, and the platforms that tests install."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

import tiny_models


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The GGUF file of SmolLM2-135M-Instruct."""
    from core.weights.source import default_model

    return default_model()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes, once a session, a tiny random checkpoint of a family: llama, mistral, qwen2, qwen3, … (see tiny_models)."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tiny_models.save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make
