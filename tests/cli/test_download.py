"""`core download`: what it prints, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import ENVIRONMENT, client, s3_server

from core.cli.main import main


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        client(port).create_bucket(Bucket="models")
        client(port).put_object(Bucket="models", Key="a.gguf", Body=b"GGUF")
        yield port


@pytest.mark.slow
def test_the_path_is_printed(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(name, value)
    assert main(["download", "s3://models/a.gguf", "--to", str(tmp_path / "models")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == str(tmp_path / "models" / "a.gguf") and Path(line).read_bytes() == b"GGUF"


def test_what_is_here_already_is_not_fetched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", str(tmp_path)]) == 1
    assert f"`core serve {tmp_path}` serves it" in capsys.readouterr().err


def test_what_is_no_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "no-model"]) == 1
    assert "'no-model' is no directory and no file here" in capsys.readouterr().err
