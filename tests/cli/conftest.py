"""A server for the terminal clients to talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_server import Server, servers


@pytest.fixture
def server() -> Iterator[Server]:
    with servers() as start:
        yield start()
