"""The transport in memory: each message takes a seeded time, in order on its connection, and ends may go at any moment."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from core.clock import Clock
from core.engine.transport import Arrived, Connection, Hub, Mailbox, Peer, Transport


class Inbox:
    """What has arrived at one end; it has one reader."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Any) -> None:
        self.items.append(item)
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def change(self) -> None:
        """Wait until something arrives or `wake` is called."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def get(self) -> Any:
        while not self.items:
            await self.change()
        return self.items.popleft()


class Lane:
    """One direction of a connection, or a pipe. What is sent arrives in that order, unless it is cut off."""

    def __init__(self, network: Network, arrive: Callable[[Any], None]) -> None:
        self._network = network
        self._arrive = arrive
        self._under_way: deque[tuple[float, Any]] = deque()  # when it was sent, and what
        self._last = 0.0  # when the newest arrives

    def send(self, message: Any, moment: float) -> None:
        self._under_way.append((moment, message))
        self._last = max(self._last, moment + self._network.delay())
        self._network.loop.call_at(self._last, self._deliver)

    def _deliver(self) -> None:
        if self._under_way:
            self._arrive(self._under_way.popleft()[1])

    def cut(self, moment: float) -> None:
        """The sender ends at `moment`: what it would have sent later was never sent, and some of the rest is lost."""
        sent = [entry for entry in self._under_way if entry[0] <= moment]
        kept = self._network.random.randint(0, len(sent))
        self._under_way = deque(sent[:kept])

    def flush(self, moment: float) -> None:
        """The sender ends at `moment`: what it has sent until then arrives now, as from a pipe."""
        while self._under_way and self._under_way[0][0] <= moment:
            self._deliver()
        self._under_way.clear()


class Link:
    """A connection, seen from both ends."""

    def __init__(self, network: Network, peer: Peer, endpoint: str) -> None:
        self.peer = peer
        self.endpoint = endpoint
        self.inbox = Inbox()  # of the caller
        self.closed_at: float | None = None
        self.up = Lane(network, lambda message: network.arrive(endpoint, peer, message))
        self.down = Lane(network, self._arrive)

    def _arrive(self, message: bytes) -> None:
        if self.closed_at is None:
            self.inbox.put(message)


class Network:
    """Endpoints and the links to them. `slowest`: the longest that a message takes, in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random, slowest: float) -> None:
        self.loop = loop
        self.random = rng
        self.slowest = slowest
        self._links: dict[Peer, Link] = {}
        self._bound: dict[str, Inbox] = {}

    def delay(self) -> float:
        return self.slowest * self.random.random()

    def connect(self, endpoint: str) -> Link:
        peer = b"peer-%d" % (len(self._links) + 1)
        link = self._links[peer] = Link(self, peer, endpoint)
        return link

    def close(self, link: Link) -> None:
        """The caller drops its end; what it has sent still arrives."""
        if link.closed_at is None:
            link.closed_at = self.loop.time()
            link.inbox.items.clear()

    def bind(self, endpoint: str) -> Inbox:
        inbox = self._bound[endpoint] = Inbox()
        return inbox

    def unbind(self, endpoint: str) -> None:
        """Whoever listened at `endpoint` has ended, just now."""
        if self._bound.pop(endpoint, None) is not None:
            for link in self._links.values():
                if link.endpoint == endpoint:
                    link.down.cut(self.loop.time())

    def arrive(self, endpoint: str, peer: Peer, message: bytes) -> None:
        """At an endpoint; nobody hears what comes to one that is not bound."""
        inbox = self._bound.get(endpoint)
        if inbox is not None:
            inbox.put((peer, message))

    def reply(self, peer: Peer, message: bytes, moment: float) -> bool:
        """To a caller, sent at `moment`; False once it is known to have gone, which takes as long as a message."""
        link = self._links[peer]
        if link.closed_at is not None and moment >= link.closed_at + self.slowest:
            return False
        link.down.send(message, moment)
        return True


class SimConnection(Connection):
    def __init__(self, network: Network, endpoint: str) -> None:
        self._network = network
        self.link = network.connect(endpoint)

    def send(self, message: bytes) -> None:
        if self.link.closed_at is None:
            self.link.up.send(message, self._network.loop.time())

    async def receive(self) -> bytes:
        message: bytes = await self.link.inbox.get()
        return message

    def close(self) -> None:
        self._network.close(self.link)


class SimTransport(Transport):
    """Of one frontend."""

    def __init__(self, network: Network, pid: int) -> None:
        self._network = network
        self._pid = pid
        self._connections: list[SimConnection] = []

    @property
    def pid(self) -> int:
        return self._pid

    def connect(self, endpoint: str) -> SimConnection:
        self._connections.append(SimConnection(self._network, endpoint))
        return self._connections[-1]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def die(self) -> None:
        """The process ends without a word: what it was sending is cut off."""
        for connection in self._connections:
            connection.link.up.cut(self._network.loop.time())
            connection.close()


class SimHub(Hub):
    """Of the supervisor, which does not die: a server without it is no server."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._inbox = network.bind(self.endpoint("control"))

    @classmethod
    @contextmanager
    def open(cls, network: Network) -> Iterator[SimHub]:
        hub = cls(network)
        yield hub
        network.unbind(hub.endpoint("control"))

    def endpoint(self, name: str) -> str:
        return f"sim://{name}"

    def retire(self, endpoint: str) -> None:
        self._network.unbind(endpoint)

    def send(self, peer: Peer, message: bytes) -> bool:
        return self._network.reply(peer, message, self._network.loop.time())

    async def receive(self) -> Arrived:
        arrived: Arrived = await self._inbox.get()
        return arrived


class SimMailbox(Mailbox):
    """Of an engine, which is ahead of the loop's time while it steps: what it sends then leaves at its own time."""

    def __init__(self, network: Network, endpoint: str, clock: Clock) -> None:
        self._network = network
        self._clock = clock
        self._inbox = network.bind(endpoint)
        self._stopping = False

    def stop(self) -> None:
        """The supervisor wants the engine to end."""
        self._stopping = True
        self._inbox.wake()

    async def readable(self) -> None:
        """Wait until `receive` has something to say."""
        while not self._inbox.items and not self._stopping:
            await self._inbox.change()

    def receive(self, *, wait: bool) -> list[Arrived] | None:
        if self._stopping:
            return None
        arrived = list(self._inbox.items)
        assert arrived or not wait, "in a simulation nobody waits but in `readable`"
        self._inbox.items.clear()
        return arrived

    def send(self, peer: Peer, message: bytes) -> bool:
        return self._network.reply(peer, message, self._clock.now())
