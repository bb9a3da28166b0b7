"""docs/conformance.md says what the kit does, and what its report holds."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from core.conformance import report

sys.path.insert(0, str(Path(__file__).parent))

import documented


@pytest.fixture(scope="module")
def page() -> str:
    return documented.PAGE.read_text(encoding="utf-8")


def test_checks_bounds_and_mutants_are_as_they_are(page: str) -> None:
    assert page == documented.with_parts(page), "run tests/conformance/documented.py"


@pytest.mark.parametrize("struct", [report.Report, report.CheckResult, report.OpSupport, report.Device, report.Figure])
def test_every_field_of_the_report_is_described(page: str, struct: type[msgspec.Struct]) -> None:
    described = page.partition("## The report")[2].partition("## Mutants")[0]
    assert not [name for name in struct.__struct_fields__ if f"`{name}`" not in described]
    assert f"`schema` is {report.SCHEMA};" in described
