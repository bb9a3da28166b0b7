"""Models that are a config.json only."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim_engine import LLAMA3_70B, write_model


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def llama3_70b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama3-70b"), LLAMA3_70B)
