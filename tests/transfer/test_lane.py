"""The thread that a connector lives on: order, trouble, rest, the end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from core.errors import ConfigError, PluginLoadError
from core.transfer import lane as module
from core.transfer.lane import Lane


def done(lane: Lane) -> None:
    """Wait until all that was added has been called."""
    event = threading.Event()
    lane.add(lambda connector: event.set(), urgent=False)
    assert event.wait(5)


def fail(name: str) -> None:
    raise OSError(f"no {name} today")


def test_one_thread_makes_and_calls_in_order_the_urgent_first(shelf: Any, gate: Any) -> None:
    threads: list[int] = []

    def make() -> Any:
        threads.append(threading.get_ident())
        return shelf

    lane = Lane("shelf", make)
    order: list[str] = []
    lane.add(lambda connector: gate("first"), urgent=False)
    assert gate.entered.wait(5)
    for name, urgent in (("save 1", False), ("load 1", True), ("save 2", False), ("load 2", True)):
        lane.add(
            lambda connector, name=name: (order.append(name), threads.append(threading.get_ident())), urgent=urgent
        )
    gate.open()
    done(lane)
    lane.close()
    assert order == ["load 1", "load 2", "save 1", "save 2"]
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident()
    assert shelf.closed == 1 and shelf.threads == set(threads)


def test_what_make_raises_is_raised(shelf: Any) -> None:
    def make() -> Any:
        raise ConfigError("--plugin-opt shelf.url", "not a url")

    with pytest.raises(ConfigError, match="not a url"):
        Lane("shelf", make)


def test_make_that_hangs_stops_the_start(gate: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_S", 0.05)

    def make() -> Any:
        gate("make")
        return shelf

    with pytest.raises(PluginLoadError, match=r"shelf has not come up within 0.05 s"):
        Lane("shelf", make)


def test_a_call_that_raises_is_logged_once_and_followed_by_a_rest(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REST_S", 0.1)
    assert lane.usable()
    for _ in range(3):
        lane.add(lambda connector: fail("save"), urgent=False)
    done(lane)
    assert not lane.usable()
    assert [record.getMessage() for record in caplog.records] == [
        "shelf: OSError: no save today; it is left alone for 0.1 s and KV is computed"
    ]
    time.sleep(0.12)
    assert lane.usable()


def test_warnings_say_how_many_were_kept_quiet(
    lane: Lane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.05)
    for number in range(3):
        lane.warn(f"trouble {number}")
    time.sleep(0.06)
    lane.warn("trouble 3")
    assert [record.getMessage() for record in caplog.records] == [
        "shelf: trouble 0",
        "shelf: trouble 3 (2 more were kept quiet)",
    ]


def test_while_a_call_hangs_nothing_is_asked_and_then_it_is(
    lane: Lane, gate: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HUNG_S", 0.05)
    monkeypatch.setattr(module, "REST_S", 0.05)
    lane.add(lambda connector: gate("save"), urgent=False)
    assert gate.entered.wait(5)
    assert lane.usable()
    time.sleep(0.06)
    assert not lane.usable()
    time.sleep(0.06)
    assert not lane.usable(), "it hangs still"
    gate.open()
    done(lane)
    time.sleep(0.06)
    assert lane.usable()
    assert "a call has hung for more than 0.05 s" in caplog.text


def test_close_works_off_what_is_queued_and_may_be_repeated(lane: Lane, shelf: Any) -> None:
    made: list[int] = []
    for number in range(5):
        lane.add(lambda connector, number=number: made.append(number), urgent=False)
    lane.close()
    lane.close()
    assert (made, shelf.closed) == ([0, 1, 2, 3, 4], 1)


def test_close_leaves_a_hanging_call_behind(
    lane: Lane, gate: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.05)
    lane.add(lambda connector: gate("save"), urgent=False)
    assert gate.entered.wait(5)
    lane.close()
    assert "has not ended within 0.05 s and is left behind" in caplog.text
    gate.open()


def test_close_that_raises_is_logged(lane: Lane, shelf: Any, caplog: pytest.LogCaptureFixture) -> None:
    shelf.trouble = fail
    lane.close()
    assert "close raised OSError: no close today" in caplog.text
