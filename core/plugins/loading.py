"""From an entry point to a plugin's hooks, each plugin in isolation.

Each plugin lives in a plugin manager of its own, so that what one does wrong is its own error and leaves the others
as they were. Used for both groups, platforms and extensions.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from core import hookspecs
from core.errors import ApiVersionError, PlatformError, PluginLoadError
from core.logs import get_logger
from core.platform import API_VERSION, PluginInfo

#: Packages so slow to import that a plugin's entry-point module, which every start-up imports, must do without.
_TOO_SLOW = ("torch", "transformers")

log = get_logger("plugins")


@dataclass(frozen=True)
class Kind:
    """A group of entry points: `required` hooks must all be there, and at least one of `optional`, if there are any."""

    group: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


PLATFORMS = Kind("core.platforms", ("plugin_info", "probe", "create_platform"))
EXTENSIONS = Kind("core.plugins", ("plugin_info",), hookspecs.EXTENSION_HOOKS)


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that imported, registered its hooks, and speaks our version of the contract."""

    name: str
    distribution: str  # name and version
    info: PluginInfo
    hooks: Any  # pluggy's relay, which is dynamic


@dataclass(frozen=True)
class FoundPlugin:
    """An entry point, and what came of loading it: `plugin` or `error`."""

    name: str
    distribution: str
    plugin: LoadedPlugin | None = None
    error: PlatformError | None = None

    def loaded(self) -> LoadedPlugin:
        """The plugin. Raises PluginLoadError or ApiVersionError, with the cause, if it could not be loaded."""
        if self.plugin is None:
            assert self.error is not None
            raise self.error
        return self.plugin


def installed(kind: Kind) -> list[str]:
    """The names of all installed plugins of a kind; nothing is imported."""
    return sorted({entry.name for entry in entry_points(group=kind.group)})


def find(kind: Kind, only: str | None = None) -> list[FoundPlugin]:
    """Every installed plugin of a kind, by name, each loaded in isolation; with `only`, nothing else is imported."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=kind.group):
        by_name.setdefault(entry.name, []).append(entry)
    return [_load(kind, name, found) for name, found in sorted(by_name.items()) if only in (None, name)]


def _load(kind: Kind, name: str, entries: Sequence[EntryPoint]) -> FoundPlugin:
    distribution = " and ".join(sorted(map(_distribution, entries)))
    if len(entries) > 1:
        message = f"plugin {name!r} is provided by {distribution}; uninstall all but one of them"
        return FoundPlugin(name, distribution, error=PluginLoadError(message))
    try:
        return FoundPlugin(name, distribution, plugin=_load_one(kind, entries[0], distribution))
    except PlatformError as error:
        return FoundPlugin(name, distribution, error=error)


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"


def _load_one(kind: Kind, entry: EntryPoint, distribution: str) -> LoadedPlugin:
    where = f"plugin {entry.name!r} of {distribution}"
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        with heard(where, "when it is imported"), _quick_imports_only():
            manager.register(entry.load(), entry.name)
        manager.check_pending()
        given = {hook for hook in hookspecs.HOOKS if getattr(manager.hook, hook).get_hookimpls()}
        info = manager.hook.plugin_info() if "plugin_info" in given else None
    except (Exception, SystemExit) as error:  # whatever a stranger's module does at import
        raise PluginLoadError(
            f"{where} cannot be loaded from {entry.value}: {describe(error)}; repair or uninstall it"
        ) from error
    _check_hooks(kind, entry, given, where)
    if not isinstance(info, PluginInfo):
        raise PluginLoadError(f"{where}: plugin_info() gave {info!r} where core.platform.PluginInfo is due")
    if info.name != entry.name:
        raise PluginLoadError(f"{where}: plugin_info() calls it {info.name!r}; the entry point must have the same name")
    _check_version(info, where)
    return LoadedPlugin(entry.name, distribution, info, manager.hook)


def _check_hooks(kind: Kind, entry: EntryPoint, given: set[str], where: str) -> None:
    missing = [hook for hook in kind.required if hook not in given]
    if missing:
        raise PluginLoadError(
            f"{where} implements no {' and no '.join(missing)}; mark each with core.hookspecs.hookimpl"
        )
    if kind.optional and not given.intersection(kind.optional):
        raise PluginLoadError(f"{where} adds nothing: it implements none of {', '.join(kind.optional)}")
    other = EXTENSIONS if kind is PLATFORMS else PLATFORMS
    unasked = sorted(given - {*kind.required, *kind.optional})
    if unasked and entry.value not in {one.value for one in entry_points(group=other.group)}:
        raise PluginLoadError(
            f"{where} implements {', '.join(unasked)}, which is asked of the entry-point group {other.group!r} only; "
            "name the module in that group too"
        )


def _check_version(info: PluginInfo, where: str) -> None:
    major, minor = API_VERSION
    if info.api[0] == major and info.api[1] <= minor:
        return
    remedy = "upgrade core, or install an older plugin" if info.api > API_VERSION else "upgrade the plugin"
    raise ApiVersionError(
        f"{where} was written for version {info.api[0]}.{info.api[1]} of the plugin contract; "
        f"this core has {major}.{minor}: {remedy}"
    )


def describe(error: BaseException) -> str:
    """An exception's type and message."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# --- what a stranger's module may not do to the process that imports it --------------------------------------


@contextlib.contextmanager
def heard(where: str, when: str) -> Iterator[None]:
    """Keep what is printed inside off our standard output, which others may parse, and say who printed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        warn_of_output(where, when, printed.getvalue())


def warn_of_output(where: str, when: str, text: str) -> None:
    """Log that `where` printed `text`, if it did."""
    if text.strip():
        first = text.strip().splitlines()[0][:200]
        log.warning(f"{where} prints {when}: {first!r}; its author should log instead (core.logs.get_logger)")


class _QuickImports(importlib.abc.MetaPathFinder):
    """Refuses the slow packages where they are asked for, so that the traceback shows by whom."""

    def __init__(self) -> None:
        self.refusal: ImportError | None = None

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in _TOO_SLOW:
            self.refusal = ImportError(
                f"it imports {name} at its top, and every start-up of core would wait for that; import it inside "
                "create_platform or whatever needs it",
                name=name,
            )
            raise self.refusal
        return None


@contextlib.contextmanager
def _quick_imports_only() -> Iterator[None]:
    """Slow packages cannot be imported inside. Where this process has one already, its import costs nothing."""
    finder = _QuickImports()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
    if finder.refusal is not None:  # and the module went on without it, as if it were not installed
        raise finder.refusal
