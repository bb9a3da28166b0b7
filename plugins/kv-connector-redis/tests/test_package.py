"""The rules that a plugin keeps, held over its source and in a new interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import core_kv_connector_redis

MODULES = sorted(Path(core_kv_connector_redis.__file__).parent.glob("*.py"))
#: What core promises to keep within a major version of the contract, and a connector may use.
PUBLIC = (
    "core.cache.connector", "core.config", "core.errors", "core.hookspecs", "core.logs", "core.platform", "core.types",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_it_imports_what_is_public_only(module: Path) -> None:
    nodes = list(ast.walk(ast.parse(module.read_text())))
    assert not any(node.level for node in nodes if isinstance(node, ast.ImportFrom))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    of_core = [name for name in names if name.split(".")[0] == "core"]
    assert [name for name in of_core if not any(name == one or name.startswith(f"{one}.") for one in PUBLIC)] == []


def test_its_entry_point_loads_neither_torch_nor_redis() -> None:
    code = "import sys, core_kv_connector_redis.plugin; print({'torch', 'redis'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
