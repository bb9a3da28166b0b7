"""Ports for programs that cannot be asked which one they have taken."""

from __future__ import annotations

from contextlib import ExitStack
from socket import create_server


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has at the moment."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
