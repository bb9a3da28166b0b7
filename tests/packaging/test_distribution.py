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
from real_server import ONE_THREAD, real_server

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


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel. The dependencies are this environment's, named in a .pth file."""
    base = tmp_path_factory.mktemp("installed")
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", base / "env", cwd=base)
    python = base / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=base)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=base).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return base / "env"


def test_wheel_installs_into_a_clean_environment_and_works(installed: Path, tmp_path: Path) -> None:
    python, command = installed / "bin" / "python", installed / "bin" / "core"
    code = "import core; from platforms.cpu import _native; print(core.__file__, _native.__file__, _native.isa())"
    core_file, native_file, isa = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(core_file).is_relative_to(installed) and Path(native_file).is_relative_to(installed) and isa
    assert run(command, "--version", cwd=tmp_path).split()[-1] == "0.1.0"
    assert "cpu" in run(command, "platforms", cwd=tmp_path)


def test_wheel_serves(installed: Path, demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    options = ("--max-model-len", "256", "--kv-cache-memory", "32MiB", *ONE_THREAD)
    with real_server(demo_model, *options, command=str(installed / "bin" / "core")) as server:
        engine = server.engine()
        assert engine is not None and engine.cmdline()[0].startswith(str(installed))
        status, _, answer = server.complete("The capital of France is", max_tokens=4, temperature=0)
        assert status == 200 and "Paris" in answer["choices"][0]["text"]
