"""How the processes of a server reach each other: whole messages, in order, between ends that may go away at any time.

    frontend  Connection ──> Hub     supervisor
    frontend  Connection ──> Mailbox engine

A message arrives complete and after the ones sent before it on the same connection, or it does not arrive because one
end has gone; sending never waits. Client, supervisor and engine loop know these classes only, so they run
unchanged over the sockets of `core.engine.sockets` and over a network that a test invents. Torch-free.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import AbstractContextManager

Peer = bytes
#: Who sent it, and what.
Arrived = tuple[Peer, bytes]


class Connection(abc.ABC):
    """A caller's end of a connection."""

    @abc.abstractmethod
    def send(self, message: bytes) -> None:
        """Queue a message. One that the other end is no longer there to read is lost."""

    @abc.abstractmethod
    async def receive(self) -> bytes:
        """The next message."""

    @abc.abstractmethod
    def close(self) -> None:
        """Drop the connection, with whatever has not left or not been read."""


class Transport(abc.ABC):
    """A frontend's way to the other processes. Used from one event loop."""

    @property
    @abc.abstractmethod
    def pid(self) -> int:
        """The process at this end, as the supervisor that started it knows it."""

    @abc.abstractmethod
    def connect(self, endpoint: str) -> Connection:
        """A connection to what listens, or will listen, at `endpoint`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close every connection. What was just sent gets a moment to leave."""


class Hub(abc.ABC):
    """The supervisor's end: where frontends connect to it, and the names of where they find engines."""

    @abc.abstractmethod
    def endpoint(self, name: str) -> str:
        """Where `name` listens: `control` this hub itself, any other whoever binds it."""

    @abc.abstractmethod
    def retire(self, endpoint: str) -> None:
        """Whoever listened there has ended."""

    @abc.abstractmethod
    def send(self, peer: Peer, message: bytes) -> bool:
        """Queue a message; False if the peer has gone."""

    @abc.abstractmethod
    async def receive(self) -> Arrived:
        """The next message."""


#: Opens the hub of one server, for as long as the server runs.
OpenHub = Callable[[], AbstractContextManager[Hub]]


class Mailbox(abc.ABC):
    """The engine's end. Used from one thread, which waits here when there is nothing to do."""

    @abc.abstractmethod
    def receive(self, *, wait: bool) -> list[Arrived] | None:
        """All that has come, after waiting for it if asked to. None: the supervisor wants the engine to end."""

    @abc.abstractmethod
    def send(self, peer: Peer, message: bytes) -> bool:
        """Queue a message; False if the peer has gone."""
