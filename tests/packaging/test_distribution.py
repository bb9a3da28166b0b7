"""The sdist and the wheel: built from the tree, installed into a clean environment, used there."""

from __future__ import annotations

import sysconfig
import tarfile
import zipfile
from pathlib import Path

import packages
import pytest
from packages import CleanEnvironment, run
from real_server import ONE_THREAD, real_server

pytestmark = pytest.mark.slow


def test_sdist_holds_what_a_build_needs(tree: Path) -> None:
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    csrc = {str(path.relative_to(tree)) for path in (tree / "csrc").rglob("*") if path.is_file()}
    assert csrc | {"LICENSE", "setup.py", "pyproject.toml", "requirements/cpu.txt"} <= names


def test_wheel_holds_every_file_of_the_packages(tree: Path) -> None:
    with zipfile.ZipFile(packages.wheel(tree)) as archive:
        names = set(archive.namelist())
    sources = [path for package in ("core", "platforms") for path in (tree / package).rglob("*") if path.is_file()]
    expected = {str(path.relative_to(tree)) for path in sources}
    module = "platforms/_shared/_native" + sysconfig.get_config_var("EXT_SUFFIX")
    assert expected | {module} <= names
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]


def test_wheel_installs_into_a_clean_environment_and_works(installed: CleanEnvironment, tmp_path: Path) -> None:
    code = "import core; from platforms._shared import _native; print(core.__file__, _native.__file__, _native.isa())"
    core_file, native_file, isa = run(installed.python, "-c", code, cwd=tmp_path).split()
    assert (
        Path(core_file).is_relative_to(installed.folder) and Path(native_file).is_relative_to(installed.folder) and isa
    )
    assert run(installed.core, "--version", cwd=tmp_path).split()[-1] == "0.1.0"
    assert "cpu" in run(installed.core, "platforms", cwd=tmp_path)


def test_wheel_brings_the_conformance_kit(installed: CleanEnvironment, tmp_path: Path) -> None:
    kit = ("-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "--pyargs", "core.conformance")
    said = run(
        installed.python, *kit, "--platform", "cpu", "--level", "boot", "--report", "out.json", "-v", cwd=tmp_path
    )
    assert "plan.explained PASSED" in said and "failed" not in said
    assert str(tmp_path) in said and (tmp_path / "out.json").is_file()
    assert "0 failed" in run(installed.core, "conformance", "cpu", "--level", "boot", cwd=tmp_path)


def test_wheel_serves(installed: CleanEnvironment, demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    options = ("--max-model-len", "256", "--kv-cache-memory", "32MiB", *ONE_THREAD)
    with real_server(demo_model, *options, command=str(installed.core)) as server:
        engine = server.engine()
        assert engine is not None and engine.cmdline()[0].startswith(str(installed.folder))
        status, _, answer = server.complete("The capital of France is", max_tokens=4, temperature=0)
        assert status == 200 and "Paris" in answer["choices"][0]["text"]
