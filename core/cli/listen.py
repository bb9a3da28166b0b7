"""The socket that a server listens on, made before anything slow, so that one that is taken is known at once."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.server.options import ServerOptions

_BACKLOG = 1024
#: Seconds of silence after which a peer is asked whether it is there, between the questions, and how many go unheard:
#: a client that went without a word (a half-open connection) is noticed after two minutes, not after two hours.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
#: Milliseconds for which what was sent may stay unacknowledged (RFC 5482).
_USER_TIMEOUT_MS = 120_000


@dataclass(frozen=True)
class Address:
    """Where a client on this machine reaches the server, and how curl is told so."""

    url: str
    curl: str
    is_public: bool  # others than this machine's may reach it

    @classmethod
    def of(cls, listener: socket.socket, *, tls: bool = False, root_path: str = "") -> Address:
        """The address of a listening socket."""
        scheme = "https" if tls else "http"
        if listener.family == socket.AF_UNIX:
            path = listener.getsockname()
            return cls(f"{scheme}+unix:{path}", f"curl --unix-socket {path} {scheme}://localhost{root_path}", False)
        host, port = listener.getsockname()[:2]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        shown = f"[{reachable}]" if ":" in reachable else reachable
        url = f"{scheme}://{shown}:{port}{root_path}"
        return cls(url, f"curl {url}", not ipaddress.ip_address(host.partition("%")[0]).is_loopback)


@contextmanager
def listen(options: ServerOptions) -> Iterator[socket.socket]:
    """The listening socket that the options ask for. Raises ConfigError."""
    if options.uds is None:
        with _listen_tcp(options.host, options.port) as listener:
            yield listener
        return
    with _listen_unix(options.uds) as listener:
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(options.uds)


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError("--host", f"{host!r} is not an address of this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option, value in (*_KEEPALIVE, (socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)):
            listener.setsockopt(socket.IPPROTO_TCP, option, value)  # the connections inherit them
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_error(host, port, error) from error
    return listener


def _bind_error(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError("--port", f"{host}:{port} is in use; end what listens there, or choose another port")
    if error.errno == errno.EACCES:
        return ConfigError("--port", f"ports below 1024, like {port}, are not for everyone; choose a higher one")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError("--host", f"{host!r} is not an address of this machine; 0.0.0.0 is all of them")
    return ConfigError("--host", f"cannot listen on {host}:{port}: {error.strerror}")


def _listen_unix(path: str) -> socket.socket:
    """A Unix socket that only this user may connect to, in place of one that a server left behind."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        if Path(path).is_socket() and not _answers(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = "something listens or lies there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError("--uds", f"cannot listen on {path!r}: {reason}") from error
    finally:
        os.umask(mask)
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True
