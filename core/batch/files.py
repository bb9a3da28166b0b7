"""The two files of a batch. Source: OpenAI's API reference, Batch ("The request input object", "The request output object").

Both are lines of JSON. An answer is appended in one write as soon as it is there, so the output file says which requests
are done: a batch that was killed goes on with the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from core.errors import CoreError


class BatchFileError(CoreError):
    """A file that is no batch's, or whose lines contradict each other."""


class BatchRequest(msgspec.Struct, frozen=True):
    """One line of the input: `body` is what is sent to `url`, a path."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: Literal["POST"] = "POST"


class BatchResponse(msgspec.Struct):
    """What the server said; `body` is its JSON."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchAnswer(msgspec.Struct):
    """One line of the output. A request that was refused has a response too: its status code says so."""

    id: str
    custom_id: str
    response: BatchResponse | None
    error: dict[str, Any] | None = None


class _Done(msgspec.Struct):
    custom_id: str


def read_requests(path: Path) -> Iterator[BatchRequest]:
    """The requests, one at a time. Raises BatchFileError naming the line."""
    decoder = msgspec.json.Decoder(BatchRequest)
    seen: dict[str, int] = {}
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                request = decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise BatchFileError(f"{path}, line {number}: {error}") from error
            if not request.url.startswith("/"):
                message = f"url {request.url[:100]!r} is not a path like /v1/chat/completions"
                raise BatchFileError(f"{path}, line {number}: {message}")
            if first := seen.setdefault(request.custom_id, number) - number:
                message = f"custom_id {request.custom_id[:100]!r} is also on line {number + first}; give each its own"
                raise BatchFileError(f"{path}, line {number}: {message}")
            yield request


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise BatchFileError(f"{path}: {error.strerror}") from error


class AnswerFile:
    """The output file: what is in it stays, what is appended is whole or not there. Raises BatchFileError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: set[str] = set()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise BatchFileError(f"{path}: {error.strerror}") from error
        try:
            self._recover()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, answer: BatchAnswer) -> None:
        """Add a line."""
        line = memoryview(msgspec.json.encode(answer) + b"\n")
        while line:
            line = line[os.write(self._file, line) :]
        self.done.add(answer.custom_id)

    def _recover(self) -> None:
        """Learn what is done, and cut off a last line that a killed run left unfinished."""
        decoder, end = msgspec.json.Decoder(_Done), 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    self.done.add(decoder.decode(line).custom_id)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise BatchFileError(
                        f"{self._path}, line {number}: it is no answer of a batch: {error}; name another output file"
                    ) from error
        os.ftruncate(self._file, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.fsync(self._file)
        os.close(self._file)
