"""The rules that a plugin keeps, held over its source and in a new interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import core_openvino

MODULES = sorted(Path(core_openvino.__file__).parent.glob("*.py"))
LINES = 400
#: The contract: what core promises to keep within a major version.
PUBLIC = ("clock", "config", "defaults", "distributed", "errors", "hookspecs", "logs", "ops", "platform", "program",
          "recording", "types")  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_it_imports_the_contract_only(module: Path) -> None:
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    of_core = [name.split(".") for name in names if name.split(".")[0] == "core"]
    assert [name for name in of_core if len(name) == 1 or name[1] not in PUBLIC] == []
    assert not any(name.startswith(("platforms", "plugins")) for name in names)
    assert not any(node.level for node in nodes if isinstance(node, ast.ImportFrom))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_no_file_is_too_long(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= LINES


def test_choosing_a_platform_loads_neither_torch_nor_openvino() -> None:
    code = (
        "import sys, os\n"
        "from core.platform import ProbeEnv\n"
        "from core_openvino import plugin\n"
        "before = dict(os.environ)\n"
        "assert plugin.probe(ProbeEnv()).state == 'AVAILABLE', plugin.probe(ProbeEnv()).reason\n"
        "print({'torch', 'numpy', 'openvino'} & set(sys.modules), dict(os.environ) == before)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("set() True\n", "")


@pytest.mark.slow
def test_making_the_platform_reports_nothing_to_anyone(tmp_path: Path) -> None:
    """OpenVINO imports the package that sends reports wherever it finds it."""
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('telemetry was loaded')")
    lines = ["import sys", f"sys.path.insert(0, {str(tmp_path)!r})"]
    make = ["from core.platform import PlatformContext", "from core_openvino import plugin",
            "print(plugin.create_platform(PlatformContext()).devices()[0].index)"]  # fmt: skip
    for then, expected in ((["import openvino"], (1, "")), (make, (0, "0\n"))):
        ran = subprocess.run(
            [sys.executable, "-c", "\n".join(lines + then)], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout) == expected, ran.stderr
