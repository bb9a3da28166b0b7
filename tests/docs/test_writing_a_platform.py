"""The tutorial is followed to the letter, and ends with the files of plugins/minimal-platform."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import tutorial

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "writing-a-platform.md"
PLUGIN = ROOT / "plugins" / "minimal-platform"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_it_ends_with_the_plugin(tmp_path: Path) -> None:
    with tutorial.Reader(tmp_path, {}) as reader:
        for block in tutorial.blocks(PAGE):
            if block.language != "console":
                reader.follow(block)
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    sources = [PLUGIN / "pyproject.toml", *(PLUGIN / "core_minimal").glob("*.py")]
    assert {path.relative_to(PLUGIN): path.read_text() for path in sources}.items() <= written.items()
    assert {str(path) for path in written if path.parent.name} == {
        str(path.relative_to(PLUGIN)) for path in sources if path.parent != PLUGIN
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_it_shows_happens(tmp_path: Path, demo_model: str) -> None:
    environment = tutorial.environment(tmp_path / "env")
    with tutorial.Reader(tmp_path / "minimal-platform", environment, {"8100": free_port()}) as reader:
        for block in tutorial.blocks(PAGE):
            reader.follow(block)
