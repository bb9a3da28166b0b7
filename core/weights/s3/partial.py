"""A file that is being fetched: which of its parts are there, kept beside it so that the next process knows."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import Self

from core.weights.s3.store import StoredObject

PART_BYTES = 32 << 20

#: The folder of the records, within the model's directory.
RECORDS = ".s3"

_COMPLETE = "complete"


class PartialFile:
    """The file of one object. Its record: a line that identifies the object, then one for each part that is there.

    The content grows as `NAME.incomplete`; `finish` gives it its name.
    """

    def __init__(self, directory: Path, name: str, stored: StoredObject) -> None:
        self.path = directory / name
        self.incomplete = directory / f"{name}.incomplete"
        self._record = directory / RECORDS / name
        self._identity = f"{stored.etag} {stored.size} {PART_BYTES}"
        self._size = stored.size
        self._lock = Lock()
        self._done, self.is_complete = self._read_record()

    def _read_record(self) -> tuple[set[int], bool]:
        lines = self._record.read_text().splitlines() if self._record.is_file() else []
        if lines[:1] != [self._identity]:
            return set(), False
        if lines[-1] == _COMPLETE:
            return set(), self.path.is_file() and self.path.stat().st_size == self._size
        if not self.incomplete.is_file():
            return set(), False
        return {int(line) for line in lines[1:] if line.isdigit()}, False

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The parts that are not there: first byte, and the one after the last."""
        starts = range(0, self._size, PART_BYTES)
        return [
            (start, min(start + PART_BYTES, self._size))
            for index, start in enumerate(starts)
            if index not in self._done
        ]

    @property
    def missing_bytes(self) -> int:
        return 0 if self.is_complete else sum(stop - start for start, stop in self.missing)

    def __enter__(self) -> Self:
        """Open for writing; a file that no record fits is begun anew."""
        self._record.parent.mkdir(parents=True, exist_ok=True)
        if not self._done:
            self._record.write_text(f"{self._identity}\n")
            self.incomplete.unlink(missing_ok=True)
        self._file = os.open(self.incomplete, os.O_RDWR | os.O_CREAT, 0o644)
        os.truncate(self._file, self._size)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`; from any thread."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def part_is_there(self, start: int) -> None:
        """Note the part that begins at `start`."""
        with self._lock, self._record.open("a") as record:
            record.write(f"{start // PART_BYTES}\n")

    def finish(self) -> None:
        """The content is right: give it its name."""
        self.incomplete.replace(self.path)
        self._record.write_text(f"{self._identity}\n{_COMPLETE}\n")

    def discard(self) -> None:
        """The content is wrong: the next process begins anew."""
        self._record.unlink(missing_ok=True)
        self.incomplete.unlink(missing_ok=True)
