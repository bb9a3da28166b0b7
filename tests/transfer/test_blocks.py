"""The worker's side: what is saved, what is brought, and what becomes of a load when it is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.transfer import BlockTransfer, blocks
from core.transfer.blocks import Progress
from core.transfer.lane import Lane
from core.types import NULL_BLOCK, KVOp, KVTransferStats

BYTES = (8, 4)


@pytest.fixture
def transfer(lane: Lane) -> Iterator[BlockTransfer]:
    made = BlockTransfer(lane, BYTES)
    yield made
    made.close()


def key(number: int) -> bytes:
    return bytes([number]) * 32


def data(number: int, group: int = 0) -> bytes:
    return bytes([number]) * BYTES[group]


def save(transfer: BlockTransfer, number: int, group: int = 0) -> int:
    taken = transfer.room(group, 1)
    if taken:
        transfer.save(key(number), group, memoryview(data(number, group)))
    return taken


def load(transfer: BlockTransfer, request_id: str, *numbers: int, group: int = 0) -> None:
    transfer.load(
        request_id, [KVOp("load", group, NULL_BLOCK, 10 + number, key(number), request_id) for number in numbers]
    )


def end(transfer: BlockTransfer) -> tuple[dict[tuple[int, int], bytes], list[str], list[str]]:
    """What arrives until some load ends, and which did."""
    arrived: dict[tuple[int, int], bytes] = {}
    for _ in range(100):
        progress: Progress = transfer.progress(0.1)
        arrived.update({(block.group, block.block): bytes(block.data) for block in progress.arrived})
        if progress.loaded or progress.failed:
            return arrived, list(progress.loaded), list(progress.failed)
    raise AssertionError("no load has ended")


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to be")


def test_what_was_saved_is_brought(transfer: BlockTransfer, shelf: Any) -> None:
    for number, group in ((1, 0), (2, 0), (1, 1)):
        assert save(transfer, number, group) == 1
    until(lambda: transfer.stats().saved == 3)
    assert shelf.kept == {(key(1), 0): data(1), (key(2), 0): data(2), (key(1), 1): data(1, 1)}
    load(transfer, "one", 1, 2)
    arrived, loaded, failed = end(transfer)
    while not loaded:
        more, loaded, failed = end(transfer)
        arrived |= more
    assert (arrived, loaded, failed) == ({(0, 11): data(1), (0, 12): data(2)}, ["one"], [])
    assert transfer.stats() == KVTransferStats(saved=3, loaded=2)
    assert transfer.progress(0.0) == Progress([], [], [])


def test_a_block_that_is_gone_fails_its_request_and_no_other(
    transfer: BlockTransfer, shelf: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.kept[key(1), 0] = data(1)
    load(transfer, "lost", 3, 1)
    assert end(transfer) == ({}, [], ["lost"])
    load(transfer, "found", 1)
    assert end(transfer)[1:] == (["found"], [])
    assert transfer.stats() == KVTransferStats(loaded=1, failed=2)
    assert shelf.calls == ["load", "load"], "what follows a lost block is not brought"
    assert not caplog.records, "stores forget; that is no trouble"


@pytest.mark.parametrize("wrong", [b"", b"\1" * 7, b"\1" * 9])
def test_data_of_another_length_is_refused(
    transfer: BlockTransfer, shelf: Any, wrong: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.kept[key(1), 0] = wrong
    load(transfer, "one", 1)
    assert end(transfer) == ({}, [], ["one"])
    assert f"load brought {len(wrong)} bytes for a block of 8" in caplog.text
    assert transfer.stats() == KVTransferStats(failed=1)


@pytest.mark.parametrize("wrong", [17, "text", memoryview(bytearray(8))[::2]])
def test_what_is_no_data_at_all_is_refused(transfer: BlockTransfer, shelf: Any, wrong: Any) -> None:
    shelf.kept[key(1), 0] = wrong
    load(transfer, "one", 1)
    assert end(transfer) == ({}, [], ["one"])


def test_errors_fail_loads_and_saves(transfer: BlockTransfer, shelf: Any, caplog: pytest.LogCaptureFixture) -> None:
    def trouble(name: str) -> None:
        raise ConnectionError(f"{name} refused")

    shelf.trouble = trouble
    load(transfer, "one", 1, 2, 3)
    assert end(transfer) == ({}, [], ["one"])
    assert save(transfer, 1) == 0, "it rests"
    load(transfer, "two", 1)
    assert end(transfer) == ({}, [], ["two"])
    assert shelf.calls == ["load"]
    assert transfer.stats() == KVTransferStats(failed=4, dropped=1)
    assert [record.getMessage() for record in caplog.records] == [
        "shelf: ConnectionError: load refused; it is left alone for 3 s and KV is computed"
    ]


def test_a_save_that_raises_is_counted_and_those_behind_it_are_dropped(
    transfer: BlockTransfer, shelf: Any, gate: Any
) -> None:
    def trouble(name: str) -> None:
        gate(name)
        raise ConnectionError(name)

    shelf.trouble = trouble
    for number in range(3):
        assert save(transfer, number) == 1
    gate.open()
    until(lambda: transfer.stats() == KVTransferStats(failed=1, dropped=2))


def test_a_load_that_hangs_is_given_up_and_brings_nothing_later(
    transfer: BlockTransfer, shelf: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.transfer.lane.HUNG_S", 0.05)
    monkeypatch.setattr("core.transfer.lane.REST_S", 0.05)
    shelf.kept = {(key(number), 0): data(number) for number in range(4)}
    shelf.trouble = gate
    load(transfer, "stuck", 1, 2)
    assert end(transfer) == ({}, [], ["stuck"])
    load(transfer, "behind", 3)
    assert end(transfer) == ({}, [], ["behind"])
    shelf.trouble = lambda name: None
    gate.open()
    until(lambda: len(shelf.calls) == 1 and transfer.progress(0.01) == Progress([], [], []))
    time.sleep(0.1)
    load(transfer, "after", 0)
    assert end(transfer) == ({(0, 10): data(0)}, ["after"], [])
    assert transfer.stats() == KVTransferStats(loaded=1, failed=3)


def test_a_full_queue_drops(
    transfer: BlockTransfer, shelf: Any, gate: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocks, "QUEUE_BYTES", 24)
    shelf.trouble = gate
    assert [save(transfer, number) for number in range(5)] == [1, 1, 1, 0, 0]
    assert transfer.room(1, 7) == 0
    gate.open()
    until(lambda: transfer.stats() == KVTransferStats(saved=3, dropped=9))
    assert transfer.room(0, 5) == 3
    assert sum("saves slower than blocks are filled" in record.getMessage() for record in caplog.records) == 1


def test_loads_go_before_saves(transfer: BlockTransfer, shelf: Any, gate: Any) -> None:
    shelf.trouble = gate
    shelf.kept[key(9), 0] = data(9)
    for number in range(3):
        save(transfer, number)
    assert gate.entered.wait(5)
    load(transfer, "one", 9)
    gate.open()
    assert end(transfer)[1] == ["one"]
    until(lambda: transfer.stats().saved == 3)
    assert shelf.calls == ["save", "load", "save", "save"]


def test_waiting_ends_when_something_arrives_or_the_time_is_over(
    transfer: BlockTransfer, shelf: Any, gate: Any
) -> None:
    began = time.monotonic()
    assert transfer.progress(0.05) == Progress([], [], [])
    assert time.monotonic() - began >= 0.05
    shelf.kept[key(1), 0] = data(1)
    load(transfer, "one", 1)
    began = time.monotonic()
    assert transfer.progress(5.0).loaded == ["one"]
    assert time.monotonic() - began < 2.0


def test_close_saves_what_is_queued(transfer: BlockTransfer, shelf: Any) -> None:
    for number in range(3):
        save(transfer, number)
    transfer.close()
    assert len(shelf.kept) == 3 and shelf.closed == 1
