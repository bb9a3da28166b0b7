"""The requirement files, the metadata and the pins say the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distribution, entry_points, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = ("cpu", "arm", "power", "cuda", "rocm", "xpu", "tpu", "neuron", "otel", "s3", "conformance", "dev")
PINNED = ("common", "cpu", "arm", "power", "otel", "s3", "conformance", "dev")


def read(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


def described(requirements: Iterable[Requirement]) -> set[tuple[str, str]]:
    return {(canonicalize_name(r.name), str(r.specifier)) for r in requirements}


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    pins: dict[str, str] = {}
    for requirement in read("constraints-cpu"):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not a pin"
        pins[canonicalize_name(requirement.name)] = specifier.version
    return pins


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_metadata_agrees_with_the_files(extra: str) -> None:
    declared = [Requirement(text) for text in requires("core") or []]
    if extra:
        chosen = [r for r in declared if r.marker is not None and r.marker.evaluate({"extra": extra})]
    else:
        chosen = [r for r in declared if r.marker is None]
    assert chosen and described(chosen) == described(read(extra or "common"))


def test_metadata_has_no_other_extra() -> None:
    assert set(distribution("core").metadata.get_all("Provides-Extra") or []) == set(EXTRAS)


def test_pins_cover_the_ranges_and_lie_in_them(pins: dict[str, str]) -> None:
    for requirement in (r for name in PINNED for r in read(name)):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_pins_cover_what_the_dependencies_need(pins: dict[str, str]) -> None:
    """Everything reachable from what `make` installs is pinned, or a new release could break a clone made today."""
    waiting = [r for name in PINNED for r in read(name)]
    seen: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in seen:
            continue
        seen.add(name)
        assert name in pins, f"{name} is not in constraints-cpu.txt"
        needed = [Requirement(text) for text in requires(name) or []]
        waiting += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert "torch" in seen


def test_entry_points() -> None:
    (command,) = (e for e in entry_points(group="console_scripts") if e.name == "core")
    assert command.value == "core.cli.main:main"
    platforms = {entry.name: entry.value for entry in entry_points(group="core.platforms")}
    for name in ("arm", "cpu", "power", "sim"):
        assert platforms[name] == f"platforms.{name}.plugin"


def run_python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **env}
    )


def test_unknown_target_device_is_named() -> None:
    refused = run_python("setup.py", "--version", CORE_TARGET_DEVICE="gpu")
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("CORE_TARGET_DEVICE: 'gpu' is not one of cpu, none")


def test_importing_core_loads_nothing_else() -> None:
    code = "import sys, core; print(core.__version__, sorted({'torch', 'transformers', 'msgspec'} & set(sys.modules)))"
    result = run_python("-W", "error", "-c", code)
    assert result.stdout.strip() == f"{version('core')} []", result.stderr


def test_lazy_names() -> None:
    import core
    from core.types import SamplingParams

    assert core.SamplingParams is SamplingParams
    assert {"LLM", "SamplingParams", "__version__"} <= set(dir(core))
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        core.Engine  # noqa: B018


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("sys.version_info = (3, 9, 1)", "Python 3.11 or newer is needed and"),
        ("importlib.util.find_spec = lambda name: None", "lacks its venv module: install it with `apt install python3"),
        ("sysconfig.get_paths = lambda: {'include': '/nowhere'}", "lacks its C headers: install them with `apt"),
        ("os.environ['CXX'] = 'no-such-compiler -m64'", "The C++ compiler no-such-compiler is not on PATH: install"),
    ],
)
def test_a_machine_that_lacks_something_is_told_in_one_sentence(setting: str, sentence: str) -> None:
    script = str(ROOT / "requirements" / "check_machine.py")
    code = (
        f"import importlib.util, os, runpy, sys, sysconfig; {setting}; runpy.run_path({script!r}, run_name='__main__')"
    )
    result = run_python("-c", code)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert sentence in line


def test_a_machine_that_has_everything_is_told_nothing() -> None:
    result = run_python(str(ROOT / "requirements" / "check_machine.py"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
