"""The rules that a plugin keeps, held over its source and in a new interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import core_model_example

MODULES = sorted(Path(core_model_example.__file__).parent.glob("*.py"))
#: What core promises to keep within a major version of the contract, and a model may use.
PUBLIC = ("core.errors", "core.hookspecs", "core.layers", "core.models.blocks", "core.ops", "core.platform", "core.program",
          "core.types")  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_it_imports_what_is_public_only(module: Path) -> None:
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not any(node.level for node in nodes if isinstance(node, ast.ImportFrom))
    of_core = [name for name in names if name.split(".")[0] == "core"]
    assert [name for name in of_core if not any(name == one or name.startswith(f"{one}.") for one in PUBLIC)] == []


def test_its_entry_point_loads_no_torch() -> None:
    code = "import sys, core_model_example.plugin; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
