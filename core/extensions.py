"""What plugins of the group `core.plugins` add, as data: frozen, found once, sent to every process. Torch-free.

A hook gives names and where the object of each lies, as `module:attribute`. The process that starts the server asks
the hooks; the engine or a frontend imports what it uses, and nothing else of the plugin.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from core.errors import PluginLoadError


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a plugin adds. `options` are those given to its plugin with `--plugin-opt PLUGIN.KEY=VALUE`."""

    kind: str  # the hook that named it
    name: str
    target: str  # module:attribute
    plugin: str
    distribution: str  # name and version
    options: dict[str, str] = {}

    def load(self) -> Any:
        """Import it. Raises PluginLoadError that names the plugin's distribution."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever a stranger's module does at import
            raise self.error(f"cannot be imported from {self.target}: {type(error).__name__}: {error}") from error

    def error(self, problem: str) -> PluginLoadError:
        """A PluginLoadError that says whose this is."""
        return PluginLoadError(
            f"{self.kind} {self.name!r} of plugin {self.plugin!r} ({self.distribution}) {problem}; repair or uninstall "
            "the plugin, or leave it out with --plugins"
        )


class Extensions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the loaded plugins add, by hook and name."""

    models: dict[str, Extension] = {}
    quantization_schemes: dict[str, Extension] = {}
    kv_connectors: dict[str, Extension] = {}
    tool_parsers: dict[str, Extension] = {}
    reasoning_parsers: dict[str, Extension] = {}
    logits_processors: dict[str, Extension] = {}
    samplers: dict[str, Extension] = {}
    server_routes: dict[str, Extension] = {}
    metrics_sinks: dict[str, Extension] = {}

    def tables(self) -> Iterator[tuple[str, Mapping[str, Extension]]]:
        """(hook, its extensions by name) for every hook."""
        for kind in self.__struct_fields__:
            yield kind, getattr(self, kind)


NO_EXTENSIONS = Extensions()
