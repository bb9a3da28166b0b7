"""A TCP proxy on loopback that cuts connections, or spoils what passes, and counts what it has passed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from in_thread import in_thread

_CHUNK = 16 << 10


class CuttingProxy:
    """Between clients and the server on `port`."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts_left = 0  # answers that are still to be cut, each after `cut_after` bytes
        self.cut_after = 0
        self.cut_bodies = False  # an answer ends with its headers
        self.spoil: tuple[bytes, bytes] | None = None  # these bytes become those
        self.passed = 0  # bytes of answers
        self._lock = threading.Lock()

    def run(self) -> None:
        """Accept until the listener is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            threading.Thread(target=self._pass_requests, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pass_answers, args=(server, client), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @staticmethod
    def _pass_requests(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                server.sendall(data)
        _end(server)

    def _pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := server.recv(_CHUNK):
                if self.spoil:
                    data = data.replace(*self.spoil)
                if self.cut_bodies:
                    client.sendall(b"".join(data.partition(b"\r\n\r\n")[:2]))
                    break
                client.sendall(data)
                passed += len(data)
                with self._lock:
                    self.passed += len(data)
                    cut = self.cuts_left > 0 and passed > self.cut_after
                    self.cuts_left -= cut
                if cut:
                    break
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def cutting_proxy(port: int) -> Iterator[CuttingProxy]:
    """A proxy to 127.0.0.1:port that runs until the end of the block."""
    proxy = CuttingProxy(port)
    with in_thread(proxy.run, proxy.close):
        yield proxy
