"""Servers to test against, and where the SDK's tests go."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fake_server import Server, servers


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Server]]:
    """Starts a server with options of its own; it runs to the end of the session."""
    with servers() as start:
        yield start


@pytest.fixture(scope="session")
def shared_server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """One server for all tests; its engine is as new for each."""
    shared_server.engine.reset()
    return shared_server


@pytest.fixture
def base_url(server: Server) -> str:
    """Where the SDK's tests go. Overridden, they run against any server of any model."""
    return f"{server.url}/v1"
