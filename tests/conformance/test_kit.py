"""The kit by its two doors, from a folder of nobody's: what passes, what fails, and what it says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from core.cli.main import main
from core.conformance import registry
from core.conformance.report import SCHEMA, Report, encode

TESTS = Path(__file__).parents[1]
INSTALLED = os.pathsep.join([str(TESTS / "platforms"), str(TESTS / "conformance" / "mutants")])
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "--pyargs", "core.conformance")
COMMAND = ("-m", "core.cli.main", "conformance")
ONE_THREAD = ("--platform-opt", "cpu.threads=1")

slow = pytest.mark.slow


def run(directory: Path, *arguments: str) -> tuple[int, str]:
    """Status and output of `python arguments` in `directory`, with the test platforms installed."""
    environment = {**os.environ, "PYTHONPATH": INSTALLED, "COLUMNS": "200"}
    found = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    return found.returncode, found.stdout + found.stderr


def read(path: Path) -> Report:
    return msgspec.json.decode(path.read_bytes(), type=Report)


# --- platforms that keep the contract ------------------------------------------------------------------------


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("platform", "options"),
    [
        ("cpu", ONE_THREAD),
        ("static", ()),
        ("fakegraph", ()),
        ("fakegpu", ()),
        ("mutant", ()),
        ("mutant", ("--platform-opt", "mutant.buckets=true")),
        ("mutant", ("--platform-opt", "mutant.opaque=true")),
    ],
    ids=["cpu", "static", "fakegraph", "fakegpu", "clean", "clean with buckets", "clean with opaque handles"],
)
def test_a_platform_that_keeps_the_contract_passes(platform: str, options: tuple[str, ...], tmp_path: Path) -> None:
    status, output = run(tmp_path, *PYTEST, "--platform", platform, *options, "--report", "out.json")
    assert status == 0, output
    report = read(tmp_path / "out.json")
    assert report.passed and report.platform == platform and report.level == "serve" and report.schema == SCHEMA
    assert [check.name for check in report.checks] == [check.name for check in registry.checks_up_to("serve")]
    assert not [check for check in report.checks if check.outcome == "failed"]
    supported = {
        (op.op, op.dtype) for op in report.ops if op.worst_error is not None and op.worst_error <= (op.bound or 0)
    }
    assert {("linear", "float32"), ("attention", "float32"), ("embedding", "float32")} <= supported
    assert report.distribution and report.contract >= report.plugin_contract and report.devices
    assert report.attention["sliding window"] is True and all(report.sampling.values())


@slow
def test_level_perf_tells_figures_and_judges_none(tmp_path: Path) -> None:
    options = ("--level", "perf", "-k", "plugin.loads or perf", "--report", "out.json")
    status, output = run(tmp_path, *PYTEST, "--platform", "cpu", *ONE_THREAD, *options)
    assert status == 0, output
    figures = read(tmp_path / "out.json").figures
    assert {figure.unit for figure in figures} == {"GFLOP/s", "GB/s", "tokens/s"}
    assert all(figure.value > 0 and figure.name in output for figure in figures)


# --- platforms that do not -----------------------------------------------------------------------------------


@slow
def test_a_platform_that_claims_nothing_fails(tmp_path: Path) -> None:
    options = ("--platform-opt", "mutant.fault=claims-nothing", "--level", "ops", "--report", "out.json")
    status, output = run(tmp_path, *PYTEST, "--platform", "mutant", *options)
    assert status == 1 and "Traceback" not in output
    assert "floor.ops (ops)" in output and "which a Llama needs" in output and "This matters because: " in output
    report = read(tmp_path / "out.json")
    assert not report.passed
    assert {check.name for check in report.checks if check.outcome == "failed"} >= {"floor.ops"}
    assert not any(op.supported for op in report.ops)


@slow
def test_a_fault_is_told_by_op_shape_type_and_reason(tmp_path: Path) -> None:
    options = ("--platform-opt", "mutant.fault=rope-sign", "--level", "ops", "-k", "kernels.rope")
    status, output = run(tmp_path, *COMMAND, "mutant", *options)
    assert status == 1
    (row,) = [line for line in output.splitlines() if line.startswith("kernels.rope ")]
    assert "failed" in row and "rope float32, 1 tokens, 1 heads of 2, 2 rotated" in row
    assert "1 passed, 1 failed, 0 unclaimed" in output  # kernels.rope_angles matches as well


# --- the command ---------------------------------------------------------------------------------------------


@slow
def test_the_command_prints_a_row_for_each_check(tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    status, output = run(tmp_path, *COMMAND, "static", "--level", "boot", "--report", str(report))
    assert status == 0, output
    names = [check.name for check in registry.checks_up_to("boot")]
    assert [line.split()[0] for line in output.splitlines() if " passed " in line] == names
    assert f"{len(names)} passed, 0 failed, 0 unclaimed" in output
    assert encode(read(report)) == report.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_the_command_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("core.cli.conformance.find_spec", lambda name: None if name == "pytest" else object())
    assert main(["conformance", "cpu"]) == 1
    assert "it needs pytest" in (said := capsys.readouterr().err) and "pip install 'core[conformance]'" in said
    assert importlib.util.find_spec("pytest") is not None


# --- pytest --------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--platform NAME is needed"),
        (("--platform", "nope"), "no such platform; installed: arm, cpu, cuda, "),
    ],
)
def test_a_wrong_call_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    status, output = run(tmp_path, *PYTEST, *arguments)
    assert status == 4 and message in output and output.count("\n") <= 3


@slow
def test_the_kit_adds_nothing_to_other_runs(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "def test_own(pytestconfig):\n    assert not hasattr(pytestconfig.option, 'core_level')\n"
    )
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--platform')\n")
    status, output = run(tmp_path, "-m", "pytest", "-W", "ignore", "--platform", "mine")
    assert status == 0 and "1 passed" in output, output
