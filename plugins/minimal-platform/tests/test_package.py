"""The rules that a plugin keeps, held over its source and in a new interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import core_minimal

MODULES = sorted(Path(core_minimal.__file__).parent.glob("*.py"))
LINES = 200
#: The contract: what core promises to keep within a major version.
PUBLIC = ("clock", "config", "defaults", "distributed", "errors", "hookspecs", "logs", "ops", "platform", "program",
          "recording", "types")  # fmt: skip


def test_it_is_small() -> None:
    assert len(MODULES) > 1
    assert sum(len(module.read_text().splitlines()) for module in MODULES) <= LINES


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_it_imports_the_contract_only(module: Path) -> None:
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    of_core = [name.split(".") for name in names if name.split(".")[0] == "core"]
    assert [name for name in of_core if len(name) == 1 or name[1] not in PUBLIC] == []
    assert not any(node.level for node in nodes if isinstance(node, ast.ImportFrom))


def test_its_entry_point_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, core_minimal.plugin; print(*{'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
