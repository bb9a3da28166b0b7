"""The engine's loop: what frontends ask goes in, one step follows another, and each frontend gets what is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from core.engine.messages import Abort, Deltas, Reset, ResetPrefixCache, Stats, Submit, ToEngine, encode, rejection
from core.engine.transport import Mailbox, Peer
from core.errors import RequestError
from core.types import RequestDelta

if TYPE_CHECKING:
    from core.engine.core import Engine


class EngineLoop:
    """Takes in what frontends send, steps the engine, and sends each frontend one message with all of its deltas.

    A frontend that has gone is noticed when something is sent to it; its requests are aborted then.
    """

    def __init__(self, engine: Engine, mailbox: Mailbox) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._owners: dict[str, Peer] = {}  # request id -> its frontend

    def run(self) -> None:
        """Serve until the supervisor wants the engine to end. What the engine raises here ends the process."""
        while self.turn():
            pass

    def turn(self) -> bool:
        """Take in what has arrived, waiting for it if the engine is idle, and make one step. False: end.

        An engine with unfinished requests is never idle, so it sees to their deadlines as well.
        """
        arrived = self._mailbox.receive(wait=not self._engine.has_work())
        if arrived is None:
            return False
        for frontend, message in arrived:
            self._handle(frontend, self._decoder.decode(message))
        if self._engine.has_work():
            self._deliver(self._engine.step())
        return True

    def _handle(self, frontend: Peer, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._add(frontend, message)
        elif isinstance(message, Abort):
            if self._owners.get(message.request_id) == frontend:
                del self._owners[message.request_id]
                self._engine.abort(message.request_id)
        elif isinstance(message, ResetPrefixCache):
            self._send(frontend, Reset(self._engine.reset_prefix_cache()))
        else:
            self._send(frontend, Stats(self._engine.stats()))

    def _add(self, frontend: Peer, message: Submit) -> None:
        request_id = message.request.request_id
        try:
            self._engine.add(message.request)
        except RequestError as error:
            self._send(frontend, rejection(request_id, error))
        else:
            self._owners[request_id] = frontend

    def _deliver(self, deltas: list[RequestDelta]) -> None:
        batches: dict[Peer, list[RequestDelta]] = {}
        for delta in deltas:
            if delta.finish_reason is None:
                frontend = self._owners.get(delta.request_id)
            else:
                frontend = self._owners.pop(delta.request_id, None)
            if frontend is not None:  # None: aborted while the step was running
                batches.setdefault(frontend, []).append(delta)
        for frontend, batch in batches.items():
            self._send(frontend, Deltas(batch))

    def _send(self, frontend: Peer, message: msgspec.Struct) -> None:
        if not self._mailbox.send(frontend, encode(message)):
            self._forget(frontend)

    def _forget(self, frontend: Peer) -> None:
        """Abort the requests of a frontend that has gone."""
        for request_id in [name for name, owner in self._owners.items() if owner == frontend]:
            del self._owners[request_id]
            self._engine.abort(request_id)
