"""Flags made from option structs."""

from __future__ import annotations

import argparse
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from core.cli.main import Parser
from core.cli.options import add_engine_options, add_options, engine_options, flag, given_options
from core.config import Options
from core.errors import ConfigError


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str | None, Meta(description="a name; 100% free")] = None
    max_count: Annotated[int, Meta(ge=1, le=9, description="how many")] = 3
    ratio: Annotated[float, Meta(description="how much")] = 0.5
    limit: Annotated[int, Meta(ge=1)] | None = None
    kind: Annotated[Literal["small", "large"], Meta(description="which")] = "small"
    fast: Annotated[bool, Meta(description="whether")] = True
    pair: Annotated[tuple[str, ...], Meta(description="several")] = ()


def parse(*words: str) -> Sample:
    parser = Parser(prog="core sample")
    add_options(parser, Sample, "sample options")
    return given_options(parser.parse_args(list(words)), Sample)


def test_what_is_not_given_keeps_its_default() -> None:
    assert parse() == Sample()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--name", "x"], Sample(name="x")),
        (["--max-count=9"], Sample(max_count=9)),
        (["--ratio", "1e-3"], Sample(ratio=0.001)),
        (["--limit", "4"], Sample(limit=4)),
        (["--kind", "large"], Sample(kind="large")),
        (["--no-fast"], Sample(fast=False)),
        (["--fast"], Sample(fast=True)),
        (["--pair", "a=1", "--pair", "b=2"], Sample(pair=("a=1", "b=2"))),
    ],
)
def test_each_type_is_read(words: list[str], expected: Sample) -> None:
    assert parse(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-count", "ten"], "--max-count: 'ten' is not a whole number"),
        (["--max-count", "10"], "--max-count: .*<= 9"),
        (["--limit", "0"], "--limit: .*>= 1"),
        (["--ratio", "much"], "--ratio: 'much' is not a number"),
        (["--kind", "medium"], "--kind: .*'medium'.*small"),
        (["--max-cuont", "1"], "--max-cuont: .*'--max-count'"),
        (["--max", "1"], "--max: no such option"),
    ],
)
def test_errors_name_the_flag(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*words)


def test_help_tells_descriptions_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "a name; 100% free" in shown
    assert "how many (default: 3)" in shown
    assert "whether (default: on)" in shown


def test_a_type_that_no_flag_can_hold_is_refused() -> None:
    class Odd(msgspec.Struct):
        table: dict[str, Any] = {}

    with pytest.raises(TypeError, match="no flag"):
        add_options(argparse.ArgumentParser(), Odd, "odd")


def test_every_engine_option_has_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="core")
    add_engine_options(parser)
    assert engine_options(parser.parse_args([])) == Options()
    shown = parser.format_help()
    assert all(flag(field) in shown for field in Options.__struct_fields__)
