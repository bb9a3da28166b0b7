"""A model that is a config.json only."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim_engine import write_model


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"))
