"""The tutorials are followed to the letter, and each ends with the files of its package in plugins/."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import tutorial

ROOT = Path(__file__).parents[2]
#: Page -> plugin, and its package.
TUTORIALS = {
    "writing-a-platform.md": ("minimal-platform", "core_minimal"),
    "writing-a-model.md": ("model-example", "core_model_example"),
}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("page", TUTORIALS)
def test_it_ends_with_the_plugin(page: str, tmp_path: Path) -> None:
    plugin, package = TUTORIALS[page]
    with tutorial.Reader(tmp_path, {}) as reader:
        for block in tutorial.blocks(ROOT / "docs" / page):
            if block.language != "console":
                reader.follow(block)
    folder = ROOT / "plugins" / plugin
    sources = {path.name: path.read_text() for path in (folder / package).glob("*.py")}
    assert {path.name: path.read_text() for path in (tmp_path / package).iterdir()} == sources
    assert (tmp_path / "pyproject.toml").read_text() == (folder / "pyproject.toml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TUTORIALS)
def test_what_it_shows_happens(page: str, tmp_path: Path, demo_model: str) -> None:
    environment = tutorial.environment(tmp_path / "env")
    with tutorial.Reader(tmp_path / "package", environment, {"8100": free_port()}) as reader:
        for block in tutorial.blocks(ROOT / "docs" / page):
            reader.follow(block)
