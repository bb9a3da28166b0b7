"""`core` itself: commands, misspellings, errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.cli.main import COMMANDS, main
from core.errors import CoreError


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_describes_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and f"usage: core {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "error: serv: no such command; did you mean 'serve'?"),
        (["--versoin"], "error: --versoin: no such option; did you mean '--version'?"),
        (["chat", "--temprature=1"], "error: --temprature: no such option of `core chat`; did you mean '--temperature'?"),
        (["bench", "serve", "--raet", "1"], "error: --raet: no such option of `core bench serve`; did you mean '--rate'?"),
        (["serve", "--max-num-seq", "4"], "error: --max-num-seq: no such option of `core serve`; did you mean '--max-num-seqs'?"),
        (["complete", "a", "b"], "error: b: no such argument of `core complete`"),
        (["chat", "--seed", "x"], "error: core chat: argument --seed: invalid int value: 'x'; see `core chat --help`"),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_helps(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORE_LOG_LEVEL", raising=False)
    assert main(arguments) == 1
    assert capsys.readouterr().err == message + "\n"


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_LOG_LEVEL", "debug")
    with pytest.raises(CoreError):
        main(["serv"])


def test_version_and_what_is_imported_for_it() -> None:
    code = (
        "import sys; from core.cli.main import main; main(['--version']); main([]);"
        "print([name for name in ('torch', 'transformers', 'aiohttp', 'rich', 'tokenizers', 'zmq') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[0] == "core 0.1.0" and answer.stdout.splitlines()[-1] == "[]"
