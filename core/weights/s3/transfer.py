"""From the store into a directory: many parts at a time, each taken up where its connection was cut."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Lock

from core.errors import ModelError, ModelNotFound, WeightError
from core.logs import get_logger
from core.progress import ProgressBar
from core.weights.s3.checksums import matches
from core.weights.s3.partial import RECORDS, PartialFile
from core.weights.s3.store import CONNECTIONS, Cut, Store, StoredObject

_log = get_logger("weights")

#: How often in a row a part's connection may end without one byte before it is given up, and the wait in between.
_TRIES = 6
_WAIT_S = 0.5


def fetch(store: Store, objects: Sequence[StoredObject], directory: Path, what: str) -> None:
    """Bring the objects into the directory, each under the last part of its key; what is there stays.

    Raises `ModelNotFound` where the store refuses or cannot be reached, `WeightError` for a wrong checksum.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _only_one(directory):
        files = {stored: PartialFile(directory, stored.location.key.rpartition("/")[2], stored) for stored in objects}
        waiting = {stored: file for stored, file in files.items() if not file.is_complete}
        if waiting:
            _check_room(directory, sum(file.missing_bytes for file in waiting.values()))
            with ProgressBar(f"downloading {what}") as bar:
                _Transfer(store, waiting, what, bar).run()


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Servers that share a cache fetch a model once; the others wait for the first."""
    (directory / RECORDS).mkdir(exist_ok=True)
    with (directory / RECORDS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelError(
            f"{directory}: {needed / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free; make room, or name "
            "another place (`core download --to`, HF_HOME)"
        )


class _Transfer:
    """The files that are being fetched, and how far they are."""

    def __init__(self, store: Store, files: dict[StoredObject, PartialFile], what: str, bar: ProgressBar) -> None:
        self._store = store
        self._files = files
        self._what = what
        self._bar = bar
        self._total = sum(file.missing_bytes for file in files.values())
        self._fetched = 0
        self._lock = Lock()
        self._stop = Event()

    def run(self) -> None:
        """Fetch all parts, then try the checksums. The first error ends the others."""
        started = time.monotonic()
        _log.info("downloading", model=self._what, files=len(self._files), megabytes=round(self._total / 1e6, 1))
        with ExitStack() as opened, ThreadPoolExecutor(CONNECTIONS, "s3") as pool:
            for file in self._files.values():
                opened.enter_context(file)
            try:
                _wait(
                    pool.submit(self._part, stored, file, start, stop)
                    for stored, file in self._files.items()
                    for start, stop in file.missing
                )
                self._bar.stage(f"checking {self._what}", 1.0)
                _wait(pool.submit(_accept, stored, file) for stored, file in self._files.items())
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        seconds = time.monotonic() - started
        _log.info("downloaded", model=self._what, seconds=round(seconds, 1))

    def _part(self, stored: StoredObject, file: PartialFile, start: int, stop: int) -> None:
        """One part, however often its connection is cut."""
        part, failures = start, 0
        while start < stop and not self._stop.is_set():
            before = start
            try:
                for data in self._store.read(stored, start, stop):
                    file.write(data, start)
                    start += len(data)
                    self._note(len(data))
                    if self._stop.is_set():
                        return
            except Cut as cut:
                failures = 1 if start > before else failures + 1
                if failures == _TRIES:
                    raise ModelNotFound(f"{stored.location} could not be fetched, in {_TRIES} tries: {cut}") from cut
                _log.warning("a connection was cut; going on from there", object=str(stored.location), byte=start)
                self._stop.wait(_WAIT_S * 2 ** (failures - 1))
        if start == stop:
            file.part_is_there(part)

    def _note(self, count: int) -> None:
        with self._lock:
            self._fetched += count
            self._bar.stage(f"downloading {self._what}", self._fetched / self._total)


def _wait(futures: Iterable[Future[None]]) -> None:
    """Until all are done, or one fails: raises its error, whatever those before it are at."""
    for future in as_completed(list(futures)):
        future.result()


def _accept(stored: StoredObject, file: PartialFile) -> None:
    if stored.checksum is None:
        _log.warning("the store has no checksum that can be tried; the size is right", object=str(stored.location))
    elif not matches(file.incomplete, stored.checksum):
        file.discard()
        raise WeightError(
            stored.location,
            f"what was fetched does not have the store's {stored.checksum.algorithm} checksum, and was discarded; "
            "start again to fetch it anew, or upload it again if that does not help",
        )
    file.finish()
