"""The scheduler's side: answers, and what stands for them when there are none."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from core.transfer import GuardedIndex, index
from core.transfer.lane import Lane

HASHES = [bytes([number]) * 32 for number in range(4)]


def keep(shelf: Any, *numbers: int) -> None:
    for number in numbers:
        shelf.kept[HASHES[number], 0] = b""


def test_lookup_says_what_the_connector_says(lane: Lane, shelf: Any) -> None:
    guarded = GuardedIndex(lane)
    keep(shelf, 0, 1, 3)
    assert [guarded.lookup(HASHES, number) for number in range(5)] == [2, 1, 0, 1, 0]
    assert threading.get_ident() not in shelf.threads


@pytest.mark.parametrize("answer", [-1, "two", 1.5, None])
def test_an_answer_of_another_kind_is_none(lane: Lane, shelf: Any, answer: Any) -> None:
    shelf.lookup = lambda hashes, num_local: answer
    assert GuardedIndex(lane).lookup(HASHES, 0) == 0


def test_more_than_there_is_is_cut_off(lane: Lane, shelf: Any) -> None:
    shelf.lookup = lambda hashes, num_local: 100
    assert GuardedIndex(lane).lookup(HASHES, 1) == 3


def test_after_an_error_nothing_is_asked_for_a_while(lane: Lane, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.transfer.lane.REST_S", 0.1)
    guarded = GuardedIndex(lane)
    keep(shelf, 0)

    def trouble(name: str) -> None:
        raise ConnectionError("refused")

    shelf.trouble = trouble
    assert [guarded.lookup(HASHES, 0) for _ in range(5)] == [0] * 5
    assert shelf.calls == ["lookup"]
    shelf.trouble = lambda name: None
    time.sleep(0.12)
    assert guarded.lookup(HASHES, 0) == 1


def test_a_lookup_that_hangs_holds_the_scheduler_once_and_briefly(
    lane: Lane, shelf: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "ANSWER_S", 0.05)
    monkeypatch.setattr("core.transfer.lane.REST_S", 0.1)
    monkeypatch.setattr("core.transfer.lane.HUNG_S", 0.05)
    guarded = GuardedIndex(lane)
    keep(shelf, 0)
    shelf.trouble = gate
    began = time.monotonic()
    assert [guarded.lookup(HASHES, 0) for _ in range(50)] == [0] * 50
    assert time.monotonic() - began < 1.0
    time.sleep(0.12)
    assert guarded.lookup(HASHES, 0) == 0, "it hangs still"
    gate.open()
    shelf.trouble = lambda name: None
    time.sleep(0.2)
    assert guarded.lookup(HASHES, 0) == 1
    assert shelf.calls == ["lookup", "lookup"]


def test_wants_is_asked_only_of_connectors_that_choose(lane: Lane, shelf: Any) -> None:
    assert GuardedIndex(lane).wants(HASHES[0])
    assert shelf.calls == []

    class Chooser(type(shelf)):  # type: ignore[misc]
        def wants(self, block_hash: bytes) -> bool:
            return block_hash == HASHES[1]

        def lookup(self, hashes: Sequence[bytes], num_local: int) -> int:
            return 0

    other = Lane("chooser", Chooser)
    guarded = GuardedIndex(other)
    assert [guarded.wants(block_hash) for block_hash in HASHES] == [False, True, False, False]
    guarded.close()
