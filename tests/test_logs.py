from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from core import logs
from core.errors import ConfigError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("core")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_text_is_one_line_with_the_fields_behind(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("engine", level="info", format="text")
    logs.get_logger("runner").info("%d of %d", 1, 2, seconds=1.23456, why='a "b"', empty="", path="x=y", plain="ok\n")
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO    engine  1 of 2 "
        r'seconds=1\.235 why="a \\"b\\"" empty="" path="x=y" plain="ok\\n"\n',
        err,
    )


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("engine", format="json")
    log = logs.get_logger("runner")
    log.warning("out\nof blocks", free=3, logger="mine", kind=ValueError)
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["message"], first["free"], first["level"]) == ("out\nof blocks", 3, "warning")
    assert (first["component"], first["logger"]) == ("engine", "core.runner")
    assert "ValueError: boom" in second["traceback"]


def test_levels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_LOG_LEVEL", "warning")
    logs.setup("engine")
    logs.get_logger("x").info("quiet")
    logs.get_logger("x").warning("loud")
    logging.getLogger("somebody.else").info("quiet")
    logging.getLogger("somebody.else").warning("theirs")
    logs.setup("engine", level="debug")
    logs.get_logger("x").debug("now")
    assert [line.split("  ")[-1] for line in capsys.readouterr().err.splitlines()] == ["loud", "theirs", "now"]


def test_a_traceback_follows_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("engine", format="text")
    try:
        raise ValueError("boom")
    except ValueError:
        logs.get_logger("x").exception("failed", step=3)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("failed step=3")
    assert rest[-1] == "ValueError: boom"


def test_a_bad_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_LOG_LEVEL", "loud")
    with pytest.raises(ConfigError, match="CORE_LOG_LEVEL"):
        logs.setup("engine")
