"""The engine's loop between frontends that come and go: who gets what, and what becomes of those who have gone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_engine import CONFIG, FakeEngine, make_request, tokens_of

from core.engine.loop import EngineLoop
from core.engine.messages import (
    Abort,
    Deltas,
    FromEngine,
    GetStats,
    Rejected,
    Reset,
    ResetPrefixCache,
    Stats,
    Submit,
    encode,
)
from core.engine.transport import Arrived, Mailbox, Peer


class Letters(Mailbox):
    """What each turn finds in it, and what was sent to those who are there."""

    def __init__(self, *turns: list[tuple[Peer, Any]]) -> None:
        self.turns = list(turns)
        self.gone: set[Peer] = set()
        self.sent: list[tuple[Peer, Any]] = []

    def receive(self, *, wait: bool) -> list[Arrived] | None:
        if not self.turns:
            return None if wait else []
        return [(peer, encode(message)) for peer, message in self.turns.pop(0)]

    def send(self, peer: Peer, message: bytes) -> bool:
        if peer in self.gone:
            return False
        self.sent.append((peer, msgspec.msgpack.decode(message, type=FromEngine)))
        return True

    def tokens(self, peer: Peer) -> dict[str, list[int]]:
        answers: dict[str, list[int]] = {}
        for to, message in self.sent:
            if to == peer and isinstance(message, Deltas):
                for delta in message.deltas:
                    answers.setdefault(delta.request_id, []).extend(delta.token_ids)
        return answers


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(CONFIG, {"step_s": "0", "max_requests": "2"})


def serve(engine: FakeEngine, mailbox: Letters) -> EngineLoop:
    loop = EngineLoop(engine, mailbox)  # type: ignore[arg-type]
    loop.run()
    return loop


def test_each_frontend_gets_its_own_in_one_message_a_step(engine: FakeEngine) -> None:
    first, second = make_request("first", [1], 3), make_request("second", [2], 2)
    mailbox = Letters([(b"a", Submit(first)), (b"b", Submit(second))])
    loop = serve(engine, mailbox)
    assert mailbox.tokens(b"a") == {"first": tokens_of(first)}
    assert mailbox.tokens(b"b") == {"second": tokens_of(second)}
    assert [peer for peer, _ in mailbox.sent] == [b"a", b"b", b"a", b"b", b"a"]
    assert not loop._owners


def test_only_its_own_frontend_can_abort_a_request(engine: FakeEngine) -> None:
    request = make_request("r", [1], 4)
    mailbox = Letters([(b"a", Submit(request))], [(b"b", Abort("r"))], [(b"a", Abort("r")), (b"a", Abort("r"))])
    serve(engine, mailbox)
    assert mailbox.tokens(b"a") == {"r": tokens_of(request)[:2]}
    assert not engine.has_work()


def test_the_requests_of_a_frontend_that_has_gone_are_aborted(engine: FakeEngine) -> None:
    mine, other = make_request("mine", [1], 1000), make_request("other", [2], 5)
    mailbox = Letters([(b"gone", Submit(mine)), (b"here", Submit(other))])
    mailbox.gone.add(b"gone")
    loop = serve(engine, mailbox)
    assert mailbox.tokens(b"here") == {"other": tokens_of(other)}
    assert engine.stats().steps == 5 and not loop._owners


def test_refusals_and_figures_go_to_who_asked(engine: FakeEngine) -> None:
    asked = [(b"a", Submit(make_request(name, [1], 1))) for name in ("one", "two", "three")]
    mailbox = Letters([*asked, (b"b", GetStats())])
    serve(engine, mailbox)
    refused = [(peer, message.request_id) for peer, message in mailbox.sent if isinstance(message, Rejected)]
    assert refused == [(b"a", "three")]
    assert [peer for peer, message in mailbox.sent if isinstance(message, Stats)] == [b"b"]
    assert set(mailbox.tokens(b"a")) == {"one", "two"}


def test_the_answer_to_a_reset_goes_to_who_asked(engine: FakeEngine) -> None:
    mailbox = Letters(
        [(b"b", ResetPrefixCache()), (b"a", Submit(make_request("r", [1], 2))), (b"a", ResetPrefixCache())]
    )
    serve(engine, mailbox)
    assert [each for each in mailbox.sent if isinstance(each[1], Reset)] == [(b"b", Reset(True)), (b"a", Reset(False))]
