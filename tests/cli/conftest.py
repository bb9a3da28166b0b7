"""A server for the terminal clients to talk to."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fake_server import Server, servers


@pytest.fixture
def server() -> Iterator[Server]:
    with servers() as start:
        yield start()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands set up logging for their process, to a standard error that is this test's only."""
    root, own = logging.getLogger(), logging.getLogger("core")
    handlers, levels = root.handlers[:], (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])
