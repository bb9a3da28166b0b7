"""The project's own wheel, built once, and clean environments that have it."""

from __future__ import annotations

from pathlib import Path

import packages
import pytest


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with the sdist and the wheel that was built from it in `dist`."""
    return packages.build(packages.ROOT, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def installed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> packages.CleanEnvironment:
    """A clean environment with the wheel."""
    environment = packages.CleanEnvironment(tmp_path_factory.mktemp("installed"))
    environment.install(packages.wheel(tree))
    return environment
