"""The sdist and the wheel: built from the tree, installed into a clean environment, used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache", ".hypothesis"
)

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from that sdist."""
    tree = tmp_path_factory.mktemp("dist") / "tree"
    shutil.copytree(ROOT, tree, ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=tree)
    return tree / "dist"


def test_sdist_holds_what_a_build_needs(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tree = dist.parent
    csrc = {str(path.relative_to(tree)) for path in (tree / "csrc").rglob("*") if path.is_file()}
    assert csrc | {"LICENSE", "setup.py", "pyproject.toml", "requirements/cpu.txt"} <= names


def test_wheel_holds_every_file_of_the_packages(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tree = dist.parent
    sources = [path for package in ("core", "platforms") for path in (tree / package).rglob("*") if path.is_file()]
    expected = {str(path.relative_to(tree)) for path in sources}
    module = "platforms/cpu/_native" + sysconfig.get_config_var("EXT_SUFFIX")
    assert expected | {module} <= names
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]


def test_wheel_installs_into_a_clean_environment_and_works(dist: Path, tmp_path: Path) -> None:
    """The dependencies are this environment's, named in a .pth file; core itself comes from the wheel."""
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    installed = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip()
    )
    (installed / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    code = "import core; from platforms.cpu import _native; print(core.__file__, _native.__file__, _native.isa())"
    core_file, native_file, isa = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(core_file).is_relative_to(installed) and Path(native_file).is_relative_to(installed) and isa
    command = tmp_path / "env" / "bin" / "core"
    assert run(command, "--version", cwd=tmp_path).split()[-1] == "0.1.0"
    assert "cpu" in run(command, "platforms", cwd=tmp_path)
