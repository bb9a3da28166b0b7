"""The harness itself: time that jumps, messages in order, a cache model that sees what it should, names as the core's."""

from __future__ import annotations

import asyncio
import pickle
import random

import pytest
from harness.kv import KVModel, Sequences, Store
from harness.network import Network, SimConnection, SimTransport
from harness.trace import Violation
from harness.virtual_time import Deadlock, VirtualLoop

from core.cache.prefix import BlockHasher
from core.types import Admission, KVGroupSpec, SamplingParams, StepPlan


def run(main: object) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(main)  # type: ignore[arg-type]
    finally:
        loop.close()


# --- time ----------------------------------------------------------------------------------------------------


def test_a_year_passes_at_once_and_in_order() -> None:
    order: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(wait("year", 3.15e7), wait("second", 1.0), wait("now", 0.0))

    run(main())
    assert order == [("now", 0.0), ("second", 1.0), ("year", 3.15e7)]


def test_a_deadlock_is_seen_and_not_waited_for() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(main())


def test_a_violation_travels_between_processes() -> None:
    arrived = pickle.loads(pickle.dumps(Violation("one-writer", "two write")))
    assert (arrived.invariant, arrived.detail, str(arrived)) == ("one-writer", "two write", "one-writer: two write")


# --- the network ---------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_and_not_from_the_dead() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        network = Network(loop, random.Random(0), slowest=1.0)
        inbox = network.bind("here")
        connection = SimConnection(network, "here")
        sent = [bytes([number]) for number in range(20)]
        for message in sent:
            connection.send(message)
        assert [await inbox.get() for _ in sent] == [(connection.link.peer, message) for message in sent]
        assert network.reply(connection.link.peer, b"answer", loop.time())
        assert await connection.receive() == b"answer"
        assert network.reply(connection.link.peer, b"too late", loop.time() + 5.0)
        network.unbind("here")
        await asyncio.sleep(10.0)
        assert not connection.link.inbox.items

    run(main())


def test_a_dead_caller_is_noticed_and_says_nothing_more() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        network = Network(loop, random.Random(0), slowest=1.0)
        inbox = network.bind("here")
        transport = SimTransport(network, pid=1)
        connection = transport.connect("here")
        transport.die()
        connection.send(b"from the grave")
        assert network.reply(connection.link.peer, b"lost", loop.time())
        assert not network.reply(connection.link.peer, b"refused", loop.time() + 1.0)
        await asyncio.sleep(2.0)
        assert not inbox.items and not connection.link.inbox.items

    run(main())


# --- the cache model -----------------------------------------------------------------------------------------


PROMPT = [5, 6, 7, 8, 9]


def model(window: int | None = None) -> KVModel:
    group = KVGroupSpec(layers=(0,), num_kv_heads=1, head_dim=8, window=window)
    return KVModel([group], 8, Sequences(2), Store(), lambda name, position: (PROMPT * 4)[position])


def plan(table: list[int], computed: int, count: int, *, row: int = 0) -> StepPlan:
    params = SamplingParams(seed=0)
    admission = Admission(row, f"r{row}", PROMPT, len(PROMPT), computed, [table], params, 0)
    return StepPlan(0, [], [admission], [row], [count], [], [])


def test_names_are_those_of_the_core() -> None:
    sequences, hasher = Sequences(2), BlockHasher(2, "weights")
    hashes: list[bytes] = []
    hasher.extend(hashes, hasher.root("salt"), PROMPT, 2)
    path = [sequences.root("salt", hasher.root("salt"))]
    for token in PROMPT:
        path.append(sequences.extend(path[-1], token))
    assert sequences.holds(path[1:3], hashes[0]) and sequences.holds(path[3:5], hashes[1])
    assert not sequences.holds(path[3:5], hashes[0]) and not sequences.holds([path[1], 0], hashes[0])


def test_a_whole_prefill_gives_its_token() -> None:
    cache = model()
    root = cache.sequences.root("", b"")
    assert cache.apply(plan([1, 2, 3], 0, 5), lambda name: root) == {0: PROMPT[0]}
    assert cache.apply(StepPlan(1, [0], [], [], [], [], []), lambda name: root) == {}


@pytest.mark.parametrize(
    ("table", "computed", "count", "invariant"),
    [
        ([1, 2, 3], 2, 3, "reads-what-was-written"),  # a hit on what nobody wrote
        ([1, 2, 1], 0, 5, "reads-what-was-written"),  # one block twice
        ([1, 2], 0, 5, "writes-have-room"),
        ([1, 0, 3], 0, 5, "writes-have-room"),
        ([1, 2, 3], 0, 6, "rows-are-unique"),  # more tokens than there are
    ],
)
def test_a_bad_plan_is_seen(table: list[int], computed: int, count: int, invariant: str) -> None:
    cache = model()
    root = cache.sequences.root("", b"")
    with pytest.raises(Violation) as violation:
        cache.apply(plan(table, computed, count), lambda name: root)
    assert violation.value.invariant == invariant


def test_two_rows_may_share_what_is_equal_and_nothing_else() -> None:
    cache = model()
    roots = {"r0": cache.sequences.root("", b""), "r1": cache.sequences.root("salt", b"salt")}
    cache.apply(plan([1, 2, 3], 0, 5), roots.__getitem__)
    with pytest.raises(Violation) as violation:
        cache.apply(plan([4, 2, 5], 0, 5, row=1), roots.__getitem__)
    assert violation.value.invariant == "one-writer"
    same = model()
    root = same.sequences.root("", b"")
    same.apply(plan([1, 2, 3], 0, 5), lambda name: root)
    assert same.apply(plan([1, 2, 4], 4, 1, row=1), lambda name: root) == {1: PROMPT[0]}


def test_a_window_forgets_what_it_has_passed() -> None:
    cache = model(window=2)
    root = cache.sequences.root("", b"")
    cache.apply(plan([1, 2, 3], 0, 4), lambda name: root)
    admitted = plan([0, 2, 5], 4, 1, row=1)  # reads position 3 and itself
    assert cache.apply(admitted, lambda name: root) == {1: PROMPT[0]}
