"""The extensions of the installed plugins of the group `core.plugins`, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config import Options, nearest, parse_named_options
from core.errors import ConfigError, PlatformError, PluginLoadError
from core.extensions import Extension, Extensions
from core.hookspecs import EXTENSION_HOOKS
from core.plugins.loading import EXTENSIONS, FoundPlugin, LoadedPlugin, describe, find, heard, installed
from core.plugins.options import PLUGIN_OPT, check_options, check_owners, listed


def extensions(options: Options) -> Extensions:
    """What the plugins that `--plugins` lets in add. Asked once, by the process that starts the engine.

    Raises PluginLoadError or ApiVersionError for a plugin that cannot be loaded: a server that lacks what it was given
    would answer otherwise than it should. Raises ConfigError for `--plugins` or `--plugin-opt` that name none.
    """
    names = _wanted(options.plugins, installed(EXTENSIONS))
    check_owners(PLUGIN_OPT, options.plugin_opt, names, kind="plugin", state="loaded")
    tables: dict[str, dict[str, Extension]] = {hook: {} for hook in EXTENSION_HOOKS}
    for name in names:
        (found,) = find(EXTENSIONS, name)
        plugin = found.loaded()
        given = parse_named_options(PLUGIN_OPT, options.plugin_opt, name)
        check_options(PLUGIN_OPT, plugin, given)
        for extension in _added(plugin, given):
            _insert(tables[extension.kind], extension)
    return Extensions(**tables)


@dataclass(frozen=True)
class Surveyed:
    """An installed plugin, and what it adds or why it cannot."""

    found: FoundPlugin
    adds: tuple[Extension, ...] = ()
    error: PlatformError | None = None


def survey() -> list[Surveyed]:
    """Every installed plugin of the group, whatever state it is in: for people to look at."""
    surveyed = []
    for found in find(EXTENSIONS):
        try:
            surveyed.append(Surveyed(found, tuple(_added(found.loaded(), {}))))
        except PlatformError as error:
            surveyed.append(Surveyed(found, error=error))
    return surveyed


def _wanted(choice: str, names: Sequence[str]) -> list[str]:
    if choice in ("all", "none"):
        return list(names) if choice == "all" else []
    wanted = [name.strip() for name in choice.split(",") if name.strip()]
    for name in wanted:
        if name not in names:
            raise ConfigError(
                "--plugins", f"no plugin {name!r} is installed{nearest(name, list(names))} ({listed(names)})"
            )
    return wanted


def _added(plugin: LoadedPlugin, options: dict[str, str]) -> list[Extension]:
    added = []
    for hook in EXTENSION_HOOKS:
        for name, target in _answer(plugin, hook).items():
            added.append(
                Extension(
                    kind=hook,
                    name=name,
                    target=target,
                    plugin=plugin.name,
                    distribution=plugin.distribution,
                    options=options,
                )
            )
    return added


def _answer(plugin: LoadedPlugin, hook: str) -> Mapping[str, str]:
    """The plugin's answer to one hook, held against what the hook asks for."""
    where = f"plugin {plugin.name!r} of {plugin.distribution}"
    try:
        with heard(where, f"in {hook}()"):
            answer: Any = getattr(plugin.hooks, hook)()
    except Exception as error:  # whatever a stranger's code raises
        raise PluginLoadError(f"{where}: {hook}() raised {describe(error)}; repair or uninstall it") from error
    if answer is None:  # it does not implement this one
        return {}
    if not isinstance(answer, Mapping) or not all(map(_is_target, answer.items())):
        raise PluginLoadError(f"{where}: {hook}() gave {answer!r} where names with their 'module:attribute' are due")
    return answer


def _is_target(item: tuple[Any, Any]) -> bool:
    name, target = item
    module, colon, attribute = target.partition(":") if isinstance(target, str) else ("", "", "")
    return isinstance(name, str) and bool(name and module and colon and attribute)


def _insert(table: dict[str, Extension], extension: Extension) -> None:
    other = table.setdefault(extension.name, extension)
    if other is not extension:
        raise PluginLoadError(
            f"{extension.kind} {extension.name!r} is provided by {other.distribution} and {extension.distribution}; "
            "uninstall one of them, or leave it out with --plugins"
        )
