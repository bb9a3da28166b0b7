"""`core run-batch`: every request is answered once, whatever ends the run in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.batch.files import AnswerFile, BatchAnswer, BatchFileError, BatchResponse, read_requests
from core.cli.main import main
from core.errors import QueueFull

URL = "/v1/completions"


def line(name: str, url: str = URL, **body: Any) -> str:
    return json.dumps(
        {"custom_id": name, "method": "POST", "url": url, "body": {"prompt": "say", "max_tokens": 100, **body}}
    )


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def answers(path: Path) -> dict[str, dict]:
    """The answers by custom_id; each must be there once."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    by_name = {answer["custom_id"]: answer for answer in read}
    assert len(by_name) == len(read)
    return by_name


def run(server: Any, requests: Path, output: Path, *more: str) -> int:
    return main(["run-batch", "-i", str(requests), "-o", str(output), "--url", server.url, *more])


# --- answers -------------------------------------------------------------------------------------------------


def test_every_request_is_answered(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    chat = {
        "custom_id": "chat",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "a"}]},
    }
    lines = [line(f"r{number}") for number in range(40)] + [json.dumps(chat), "", line("bad", temperature="hot")]
    requests, output = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    assert run(server, requests, output, "--concurrency", "7") == 0
    read = answers(output)
    assert set(read) == {f"r{number}" for number in range(40)} | {"chat", "bad"}
    good = read["r7"]
    assert good["id"].startswith("batch_req_") and good["error"] is None
    assert good["response"]["status_code"] == 200 and good["response"]["request_id"]
    assert good["response"]["body"]["choices"][0]["text"] == server.engine.answer
    assert read["chat"]["response"]["body"]["object"] == "chat.completion"
    assert read["bad"]["response"]["status_code"] == 400
    assert read["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert "42 requests answered (1 of them refused), 0 before" in capsys.readouterr().err


def test_what_is_answered_is_not_asked_again(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    requests = write(tmp_path / "in.jsonl", *(line(f"r{number}") for number in range(5)))
    output = tmp_path / "out.jsonl"
    assert run(server, requests, output) == 0
    first = output.read_bytes()
    whole = first.splitlines(keepends=True)
    output.write_bytes(b"".join(whole[:2]) + whole[2][:-20])  # killed while it wrote the third
    server.engine.reset()
    assert run(server, requests, output) == 0
    assert len(answers(output)) == 5 and len(server.engine.requests) == 3
    assert output.read_bytes().startswith(b"".join(whole[:2]))
    assert "3 requests answered (0 of them refused), 2 before" in capsys.readouterr().err
    assert run(server, requests, output) == 0
    assert "answered already" in capsys.readouterr().err


def test_a_busy_server_is_waited_for(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.batch import run as batch_run

    monkeypatch.setattr(batch_run, "_LONGEST_WAIT_S", 0.01)
    server.engine.error = QueueFull("4096 requests wait")
    output = tmp_path / "out.jsonl"
    clear = threading.Timer(0.3, setattr, (server.engine, "error", None))
    clear.start()
    assert run(server, write(tmp_path / "in.jsonl", line("a")), output) == 0
    clear.join()
    assert answers(output)["a"]["response"]["status_code"] == 200


def test_a_server_that_is_gone_loses_nothing(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.batch import run as batch_run

    monkeypatch.setattr(batch_run, "_LONGEST_WAIT_S", 0.001)
    requests, output = write(tmp_path / "in.jsonl", line("a"), line("b")), tmp_path / "out.jsonl"
    arguments = ["run-batch", "-i", str(requests), "-o", str(output), "--url", "http://127.0.0.1:9"]
    assert main(arguments) == 1 and output.read_bytes() == b""
    assert run(server, requests, output) == 0 and set(answers(output)) == {"a", "b"}


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], ["line 1"]),
        ([line("a"), '{"custom_id": "b"}'], ["line 2", "url"]),
        ([line("a").replace("POST", "GET")], ["line 1", "GET"]),
        ([line("a", url="http://elsewhere/v1")], ["line 1", "path"]),
        ([line("a"), line("b"), line("a")], ["line 3", "'a'", "line 1"]),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(
    lines: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    requests, output = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    assert main(["run-batch", "-i", str(requests), "-o", str(output)]) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in [str(requests), *words]) and not output.exists()


def test_an_output_that_is_something_else_is_not_touched(tmp_path: Path) -> None:
    output = tmp_path / "notes.txt"
    output.write_text("my notes\nmore\n")
    with pytest.raises(BatchFileError, match=r"line 1.*another output file"):
        AnswerFile(output)
    assert output.read_text() == "my notes\nmore\n"


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BatchFileError, match="No such file"):
        list(read_requests(tmp_path / "none"))
    with pytest.raises(BatchFileError, match="Is a directory"):
        AnswerFile(tmp_path)


def test_cut_anywhere_the_whole_lines_stay(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with AnswerFile(output) as file:
        for name in ("a", "b"):
            file.append(BatchAnswer(name, name, BatchResponse(200, "", msgspec.Raw(b"{}"))))
    content = output.read_bytes()
    for cut in range(len(content) + 1):
        output.write_bytes(content[:cut])
        with AnswerFile(output) as file:
            assert file.done == {"a", "b"} if cut == len(content) else len(file.done) == content[:cut].count(b"\n")
        assert output.read_bytes() == content[: content[:cut].rfind(b"\n") + 1]


# --- with a model --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_run_again(tmp_path: Path) -> None:
    """A server of its own, killed with everything in flight; the second run answers exactly the rest."""
    lines = [line(f"r{number}", prompt=f"Say {number}.", max_tokens=8, ignore_eos=True) for number in range(60)]
    requests, output = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    arguments = ["-i", str(requests), "-o", str(output), "--concurrency", "8"]
    command = [sys.executable, "-m", "core.cli.main", "run-batch", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (output.exists() and output.read_bytes().count(b"\n") >= 5):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = output.read_bytes().count(b"\n")
    assert before < 60
    assert subprocess.run(command, stderr=subprocess.DEVNULL, timeout=300, check=False).returncode == 0
    read = answers(output)
    assert set(read) == {f"r{number}" for number in range(60)}
    assert all(answer["response"]["body"]["usage"]["completion_tokens"] == 8 for answer in read.values())
