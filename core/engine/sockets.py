"""The transport of `core serve`: ZeroMQ over Unix sockets in a directory that only this user may enter.

No socket has a high-water mark: what queues there is bounded by the requests that are running, and a send is done, or
has failed, when the call returns. ROUTER_MANDATORY makes sending to a peer that has gone fail.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import zmq
import zmq.asyncio

from core.engine.transport import Arrived, Connection, Hub, Mailbox, Peer, Transport

#: sun_path of unix(7) holds 107 bytes; `/core-xxxxxxxx/engine-1000000.ipc` takes 34 of them.
_LONGEST_DIRECTORY = 107 - 34
_SCHEME = "ipc://"


class SocketConnection(Connection):
    """A DEALER socket."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    async def receive(self) -> bytes:
        return await self._socket.recv()

    def close(self) -> None:
        self._socket.close(linger=0)


class SocketTransport(Transport):
    """The sockets of one frontend."""

    #: What aborts that were just sent get to leave.
    LINGER_MS = 200

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()

    @property
    def pid(self) -> int:
        return os.getpid()

    def connect(self, endpoint: str) -> SocketConnection:
        socket = self._context.socket(zmq.DEALER)
        _unlimit(socket)
        socket.connect(endpoint)
        return SocketConnection(socket)

    def close(self) -> None:
        self._context.destroy(linger=self.LINGER_MS)


class SocketHub(Hub):
    """The supervisor's ROUTER in `directory`, and where engines bind theirs."""

    #: What the last message gets to leave: it may be the one that says why there will be no other.
    LINGER_MS = 1000

    def __init__(self, directory: Path, socket: zmq.asyncio.Socket) -> None:
        self._directory = directory
        self._socket = socket
        self._socket.linger = self.LINGER_MS
        _bind_private(socket, self.endpoint("control"))

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[SocketHub]:
        """A hub in a directory of its own, both gone afterwards."""
        with (
            private_directory() as directory,
            zmq.asyncio.Context() as context,
            context.socket(zmq.ROUTER) as socket,
        ):
            yield cls(directory, socket)

    def endpoint(self, name: str) -> str:
        return f"{_SCHEME}{self._directory}/{name}.ipc"

    def retire(self, endpoint: str) -> None:
        _path(endpoint).unlink(missing_ok=True)

    def send(self, peer: Peer, message: bytes) -> bool:
        sent = cast("asyncio.Future[Any]", self._socket.send_multipart((peer, message)))
        error = sent.exception()
        if error is not None and not _peer_has_gone(error):
            raise error
        return error is None

    async def receive(self) -> Arrived:
        peer, message = await self._socket.recv_multipart()
        return peer, message


class SocketMailbox(Mailbox):
    """The engine's ROUTER. The supervisor holds the other end of `stop_fd`, and closes it to have the engine end."""

    def __init__(self, socket: zmq.Socket[bytes], stop_fd: int) -> None:
        self._socket = socket
        self._stop_fd = stop_fd
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(stop_fd, zmq.POLLIN)

    @classmethod
    @contextmanager
    def bind(cls, endpoint: str, stop_fd: int) -> Iterator[SocketMailbox]:
        """A mailbox at `endpoint`, until the end of the context."""
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            _bind_private(socket, endpoint)
            yield cls(socket, stop_fd)

    def receive(self, *, wait: bool) -> list[Arrived] | None:
        ready: dict[Any, int] = dict(self._poller.poll(None if wait else 0))
        if self._stop_fd in ready:
            return None
        arrived: list[Arrived] = []
        while self._socket in ready and self._socket.poll(0):
            peer, message = self._socket.recv_multipart()
            arrived.append((peer, message))
        return arrived

    def send(self, peer: Peer, message: bytes) -> bool:
        try:
            self._socket.send_multipart((peer, message))
        except zmq.ZMQError as error:
            if not _peer_has_gone(error):
                raise
            return False
        return True


@contextmanager
def private_directory() -> Iterator[Path]:
    """A directory that only this user may enter, gone afterwards; its path is short enough for sockets in it."""
    base = tempfile.gettempdir()
    directory = tempfile.mkdtemp(prefix="core-", dir=base if len(os.fsencode(base)) <= _LONGEST_DIRECTORY else "/tmp")
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory)


def _bind_private(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Bind an endpoint that only this user may connect to, and let nothing queued there be dropped."""
    _unlimit(socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(endpoint)
    _path(endpoint).chmod(0o600)


def _unlimit(socket: zmq.Socket[Any]) -> None:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)


def _peer_has_gone(error: BaseException) -> bool:
    return isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH


def _path(endpoint: str) -> Path:
    return Path(endpoint.removeprefix(_SCHEME))
