"""A Redis of the tests' own, and the package as if it were installed where pip has not done it, children included."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

PROJECT = Path(__file__).parents[1]

try:
    INSTALLED = bool(importlib.metadata.distribution("core-kv-connector-redis"))
except importlib.metadata.PackageNotFoundError:
    INSTALLED = False
    sys.path.insert(0, str(PROJECT))


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an installation leaves: metadata with the entry point, for this process and those it starts."""
    if INSTALLED:
        yield
        return
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(PROJECT)]))
        yield


class RedisServer:
    """A redis-server on a unix socket in a directory of its own. Can be killed and started again, then empty."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"

    def start(self, *options: str) -> None:
        command = shutil.which("redis-server")
        assert command, "these tests need Redis: apt-get install -y redis-server"
        fixed = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._directory), "--save", "")
        self._process = subprocess.Popen([command, *fixed, *options], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert self._process.poll() is None and time.monotonic() < until, "redis-server does not come up"
                time.sleep(0.02)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))

    def pause(self) -> None:
        """Accept, and answer nothing."""
        assert self._process is not None
        self._process.send_signal(19)  # SIGSTOP

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(18)  # SIGCONT

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A running Redis."""
    with tempfile.TemporaryDirectory(prefix="r") as directory:  # a socket's path is short
        made = RedisServer(Path(directory))
        try:
            made.start()
            yield made
        finally:
            made.kill()
