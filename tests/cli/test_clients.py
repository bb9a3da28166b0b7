"""`core chat` and `core complete` against a server."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main


class Terminal(io.StringIO):
    """A standard input that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORE_LOG_LEVEL", raising=False)
    monkeypatch.delenv("CORE_API_KEY", raising=False)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Makes lines come from a terminal."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def type_(*lines: str) -> None:
        rest: Iterator[str] = iter(lines)

        def read(prompt: str) -> str:
            for line in rest:
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys, "stdin", Terminal())

    return type_


def prompts(server: Any) -> list[str]:
    tokenizer = server.engine._tokenizer
    return [tokenizer.decode(request.prompt_token_ids) for request in server.engine.requests]


def test_chat_through_a_pipe(server: Any) -> None:
    command = [sys.executable, "-m", "core.cli.main", "chat", "--url", server.url, "--system", "Be brief."]
    answer = subprocess.run(command, input="hi\n", capture_output=True, text=True, check=True)
    assert answer.stdout == server.engine.answer + "\n"
    assert prompts(server) == ["<|system|>Be brief.\n<|user|>hi\n<|assistant|>"]


def test_conversation(server: Any, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    server.engine.answer = "yes"
    typed("one", "", "two", "/retry", "/clear", "three", "/system S", "four", "/help", "/nope", "/quit", "never")
    assert main(["chat", "--url", server.url, "--temperature", "0.5", "--seed", "3"]) == 0
    first = "<|user|>one\n<|assistant|>"
    second = f"{first}yes\n<|user|>two\n<|assistant|>"
    third = "<|user|>three\n<|assistant|>"
    assert prompts(server) == [first, second, second, third, "<|system|>S\n<|user|>four\n<|assistant|>"]
    assert {(request.params.temperature, request.params.seed) for request in server.engine.requests} == {(0.5, 3)}
    assert "/clear" in capsys.readouterr().out


def test_conversation_survives_an_error(
    server: Any, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    server.engine.answer = "yes"
    typed("x" * 5000, "short")
    assert main(["chat", "--url", server.url]) == 0
    assert prompts(server) == ["<|user|>short\n<|assistant|>"]
    assert "answered 400: messages" in capsys.readouterr().err


def test_history_is_kept(server: Any, typed: Callable[..., None], tmp_path: Path) -> None:
    typed("one")
    assert main(["chat", "--url", server.url]) == 0
    assert (tmp_path / "core" / "chat_history").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("piped", [False, True])
def test_complete(
    server: Any, piped: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("say "))
    given = [] if piped else ["say "]
    assert main(["complete", *given, "--url", server.url + "/v1/", "--echo", "--stop", " fox"]) == 0
    assert capsys.readouterr().out == "say the quick brown\n"


def test_complete_shows_an_error_inside_a_stream(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.engine.error_after = (2, RuntimeError("broken"))
    assert main(["complete", "say", "--url", server.url]) == 1
    assert "error: internal error" in capsys.readouterr().err


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "say", "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err == (
        "error: no server answers at http://127.0.0.1:9; start one with `core serve`, or name another with --url\n"
    )


def test_complete_wants_a_prompt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["complete"]) == 1
    assert "error: prompt: give a text" in capsys.readouterr().err
