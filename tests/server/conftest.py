"""Servers to test against, and where the SDK's tests go."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributions
import pytest
from fake_server import Server, servers

from core import plugins
from core.config import parse_options
from core.extensions import Extensions

PLUGIN = """
import msgspec
from core.hookspecs import hookimpl
from core.platform import PluginInfo

class Own(msgspec.Struct):
    word: str = ""

@hookimpl
def plugin_info():
    return PluginInfo(name={name!r}, vendor="acme", version="1.0", api=(1, 0), options=Own)
"""

#: Modules are imported once a process, so each plugin gets modules of its own.
_numbers = itertools.count()


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


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Extensions]:
    """Installs a plugin `name` of distribution `acme-name`, and gives what all plugins add then.

    `source` is the module with its objects; each hook is given as {name: attribute of that module}.
    """
    root = tmp_path / "site"
    root.mkdir()

    def add(name: str, source: str, *, plugin_opt: tuple[str, ...] = (), **hooks: dict[str, str]) -> Extensions:
        module = f"server_plugin_{next(_numbers)}_{name}"
        entry = PLUGIN.format(name=name)
        for hook, attributes in hooks.items():
            targets: dict[str, Any] = {key: f"{module}_objects:{value}" for key, value in attributes.items()}
            entry += f"\n@hookimpl\ndef {hook}():\n    return {targets!r}\n"
        modules = {module: entry, f"{module}_objects": source}
        distributions.install(root, f"acme-{name}", {"core.plugins": {name: module}}, modules)
        monkeypatch.syspath_prepend(str(root))
        return plugins.extensions(parse_options({"plugin_opt": plugin_opt}))

    return add
