"""docs/reference: up to date, and complete."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from core import envs
from core.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["reference"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(reference: ModuleType) -> None:
    stale = [str(path) for path, text in reference.pages().items() if not path.is_file() or path.read_text() != text]
    assert stale == [], "run `make docs`"


def test_every_command_and_every_option_is_told(reference: ModuleType) -> None:
    page = reference.cli_page()
    parsers = reference.parsers()
    assert {name.split()[0] for name in parsers} == set(COMMANDS)
    for name, parser in parsers.items():
        section = page.partition(f"## core {name}\n")[2].partition("\n## ")[0]
        told = [
            option for _, actions in reference.options(parser) for action in actions for option in action.option_strings
        ]
        assert all(f"`{option}" in section for option in told), name
        known = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
        assert known == set(told), name


def test_every_variable_that_is_read_is_told(reference: ModuleType) -> None:
    """Every name in the sources that looks like one, in quotes, as whoever reads the environment writes it."""
    files = [*(ROOT / "core").rglob("*.py"), *(ROOT / "platforms").rglob("*.py"), ROOT / "setup.py"]
    read = {name for file in files for name in re.findall(r"""["'](CORE_[A-Z_]+)["']""", file.read_text())}
    read |= {envs.variable(field) for field in envs.Environment.__struct_fields__}
    read -= {"CORE_ISA"}  # setup.py's macro for the kernels
    assert len(read) > 5
    page = reference.environment_page()
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []
