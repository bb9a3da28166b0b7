"""When children are started again, where sockets lie, and what becomes of children without their parent."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.sockets import private_directory
from core.engine.supervisor import GIVE_UP_AFTER, LONGEST_DELAY_S, SOUND_AFTER_S, RestartPolicy


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_restarts_come_at_once_and_then_ever_later() -> None:
    policy = RestartPolicy(Clock())
    delays = []
    for _ in range(8):
        policy.ready()
        delays.append(policy.died())
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_child_that_was_ready_for_long_begins_anew() -> None:
    clock = Clock()
    policy = RestartPolicy(clock)
    for _ in range(4):
        policy.ready()
        policy.died()
    policy.ready()
    clock.now += SOUND_AFTER_S
    assert policy.died() == 0.0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=40))
def test_it_is_given_up_exactly_when_too_many_die_unready(lives: list[tuple[bool, float]]) -> None:
    """Each life: whether it got ready, and for how long it lived."""
    clock, unready = Clock(), 0
    policy = RestartPolicy(clock)
    for got_ready, seconds in lives:
        if got_ready:
            policy.ready()
            unready = 0
        clock.now += seconds
        unready += 1
        delay = policy.died()
        assert (delay is None) == (unready > GIVE_UP_AFTER)
        assert delay is None or 0.0 <= delay <= LONGEST_DELAY_S


def test_the_private_directory_is_private_and_temporary() -> None:
    with private_directory() as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()


def test_sockets_fit_their_paths_however_long_tmpdir_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with private_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "engine-1000000.ipc"))


_PARENT = """
import asyncio, socket, sys
from fake_engine import CONFIG, FrontendOptions
from core.engine.supervisor import Launch, Supervisor
from core.platform import ChosenPlatform

class Silent:
    def status(self, status): pass
    def planned(self, planned): pass
    def serving(self): print("serving", flush=True)

with socket.create_server(("127.0.0.1", 0)) as listener:
    launch = Launch(
        config=CONFIG, chosen=ChosenPlatform("fake"), frontend_options=FrontendOptions(), listen_fd=listener.fileno(),
        engine_factory="fake_engine:FakeEngine.build", frontend_entry="fake_engine:run_frontend", api_server_count=2,
    )
    asyncio.run(Supervisor(launch, Silent()).run())
assert not {"torch", "transformers"} & set(sys.modules), "the supervisor must stay small"
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_the_supervisor(number: signal.Signals) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="t") as base,
        subprocess.Popen(
            [sys.executable, "-c", _PARENT],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": base},
        ) as parent,
    ):
        assert parent.stdout is not None and parent.stdout.readline() == b"serving\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 3
        parent.send_signal(number)
        assert parent.wait() == (-number if number == signal.SIGKILL else 0)
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        time.sleep(0.01)
