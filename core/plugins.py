"""Finding, loading, probing and choosing platform plugins. Torch-free.

The parent process calls `choose` once; every other process receives the `ChosenPlatform`, and the engine's calls
`create`. Each plugin lives in a plugin manager of its own, so that what one does wrong is its own error and leaves
the others as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from core import hookspecs
from core.config import Options, nearest, parse_platform_options
from core.errors import (
    ApiVersionError,
    ConfigError,
    CoreError,
    PlatformBroken,
    PlatformError,
    PlatformNotFound,
    PluginLoadError,
)
from core.logs import get_logger
from core.platform import API_VERSION, ChosenPlatform, Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

GROUP = "core.platforms"
PROBE_TIMEOUT_S = 10.0
_HOOKS = ("plugin_info", "probe", "create_platform")

log = get_logger("plugins")


# --- finding and loading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that imported, registered all hooks, and speaks our version of the contract."""

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


def discover(only: str | None = None) -> list[FoundPlugin]:
    """Every installed plugin, by name, each loaded in isolation; with `only`, nothing else is imported."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        by_name.setdefault(entry.name, []).append(entry)
    return [_load(name, found) for name, found in sorted(by_name.items()) if only in (None, name)]


def _load(name: str, entries: Sequence[EntryPoint]) -> FoundPlugin:
    distribution = " and ".join(sorted(map(_distribution, entries)))
    if len(entries) > 1:
        message = f"platform {name!r} is provided by {distribution}; uninstall all but one of them"
        return FoundPlugin(name, distribution, error=PluginLoadError(message))
    try:
        return FoundPlugin(name, distribution, plugin=_load_one(entries[0], distribution))
    except PlatformError as error:
        return FoundPlugin(name, distribution, error=error)


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"


def _load_one(entry: EntryPoint, distribution: str) -> LoadedPlugin:
    where = f"plugin {entry.name!r} of {distribution}"
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(entry.load(), entry.name)
        manager.check_pending()
        missing = [hook for hook in _HOOKS if not getattr(manager.hook, hook).get_hookimpls()]
        info = None if missing else manager.hook.plugin_info()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does at import
        raise PluginLoadError(
            f"{where} cannot be loaded from {entry.value}: {_describe(error)}; repair or uninstall it"
        ) from error
    if missing:
        raise PluginLoadError(
            f"{where} implements no {' and no '.join(missing)}; mark each with core.hookspecs.hookimpl"
        )
    if not isinstance(info, PluginInfo):
        raise PluginLoadError(f"{where}: plugin_info() gave {info!r} where core.platform.PluginInfo is due")
    if info.name != entry.name:
        raise PluginLoadError(f"{where}: plugin_info() calls it {info.name!r}; the entry point must have the same name")
    _check_version(info, where)
    return LoadedPlugin(entry.name, distribution, info, manager.hook)


def _check_version(info: PluginInfo, where: str) -> None:
    major, minor = API_VERSION
    if info.api[0] == major and info.api[1] <= minor:
        return
    remedy = "upgrade core, or install an older plugin" if info.api > API_VERSION else "upgrade the plugin"
    raise ApiVersionError(
        f"{where} was written for version {info.api[0]}.{info.api[1]} of the platform contract; "
        f"this core has {major}.{minor}: {remedy}"
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# --- probing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A found plugin and what its probe said; one that cannot be loaded counts as BROKEN."""

    found: FoundPlugin
    result: ProbeResult
    cause: BaseException | None = None

    @property
    def name(self) -> str:
        """The platform's name."""
        return self.found.name

    @property
    def state(self) -> Literal["AVAILABLE", "ABSENT", "BROKEN"]:
        """What the probe found."""
        return self.result.state

    @property
    def experimental(self) -> bool:
        """Whether it is chosen only by name."""
        return self.found.plugin is not None and self.found.plugin.info.experimental

    @property
    def replaces(self) -> tuple[str, ...]:
        """Platforms it stands in for."""
        return self.found.plugin.info.replaces if self.found.plugin is not None else ()


def probe(found: FoundPlugin, options: Mapping[str, str], *, timeout_s: float = PROBE_TIMEOUT_S) -> Candidate:
    """Ask the plugin about this machine, for at most `timeout_s`. Raises ConfigError on a bad platform option."""
    if found.plugin is None:
        return Candidate(found, ProbeResult(state="BROKEN", reason=str(found.error)), found.error)
    answers: list[Any] = []
    hook, env = found.plugin.hooks.probe, ProbeEnv(options=dict(options))
    # A daemon: a probe stuck in a driver call cannot be stopped, and must not keep this process from ending.
    thread = threading.Thread(target=_answer, args=(hook, env, answers), name=f"probe-{found.name}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answers:
        return _broken(found, f"its probe gave no answer in {timeout_s:g} s")
    answer = answers[0]
    if isinstance(answer, ConfigError):
        raise answer
    if isinstance(answer, ProbeResult):
        return Candidate(found, answer)
    if isinstance(answer, BaseException):
        return _broken(found, f"its probe raised {_describe(answer)}", answer)
    return _broken(found, f"its probe gave {answer!r} where core.platform.ProbeResult is due")


def _answer(hook: Any, env: ProbeEnv, answers: list[Any]) -> None:
    try:
        answers.append(hook(env=env))
    except BaseException as error:  # handed to the thread that waits, which judges it
        answers.append(error)


def _broken(found: FoundPlugin, reason: str, cause: BaseException | None = None) -> Candidate:
    return Candidate(found, ProbeResult(state="BROKEN", reason=f"{reason} ({found.distribution})"), cause)


# --- choosing ------------------------------------------------------------------------------------------------


def choose(options: Options) -> ChosenPlatform:
    """The one platform to run on: the one that was named, or the best that is available.

    Raises PlatformNotFound, PlatformBroken, PluginLoadError or ApiVersionError, with the cause, or ConfigError
    for a platform option that nothing takes. Nothing is ever passed over in silence.
    """
    names = sorted({entry.name for entry in entry_points(group=GROUP)})
    _check_option_owners(options, names)
    if options.platform is not None:
        return _choose_named(options.platform, options, names)
    candidates = [probe(found, parse_platform_options(options.platform_opt, found.name)) for found in discover()]
    best = _choose_best(_contenders(candidates), candidates, fallback=options.allow_platform_fallback)
    return _chosen(best, options)


def _chosen(candidate: Candidate, options: Options) -> ChosenPlatform:
    return ChosenPlatform(
        candidate.name, parse_platform_options(options.platform_opt, candidate.name), candidate.result.reason
    )


def _check_option_owners(options: Options, names: list[str]) -> None:
    for pair in options.platform_opt:
        owner = pair.partition(".")[0]
        parse_platform_options((pair,), owner)  # its form
        if owner not in names:
            raise ConfigError(
                f"--platform-opt {pair}",
                f"no platform {owner!r} is installed{nearest(owner, names)} ({_listed(names)})",
            )


def _choose_named(name: str, options: Options, names: list[str]) -> ChosenPlatform:
    if name not in names:
        raise PlatformNotFound(
            f"--platform {name}: no such platform is installed{nearest(name, names)} ({_listed(names)})"
        )
    (found,) = discover(name)
    found.loaded()
    candidate = probe(found, parse_platform_options(options.platform_opt, name))
    if candidate.state == "ABSENT":
        raise PlatformNotFound(f"--platform {name}: it cannot run here: {candidate.result.reason}")
    if candidate.state == "BROKEN":
        raise PlatformBroken(f"--platform {name}: {candidate.result.reason}") from candidate.cause
    return _chosen(candidate, options)


def _contenders(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that may be chosen without being named: not experimental, not replaced by one that is available."""
    contenders = [candidate for candidate in candidates if not candidate.experimental]
    replaced: set[str] = set()
    for candidate in contenders:
        if candidate.state == "AVAILABLE":
            mutual = [c.name for c in contenders if c.name in candidate.replaces and candidate.name in c.replaces]
            replaced.update(set(candidate.replaces) - set(mutual))
    return [candidate for candidate in contenders if candidate.name not in replaced]


def _choose_best(contenders: list[Candidate], candidates: list[Candidate], *, fallback: bool) -> Candidate:
    for broken in (c for c in contenders if c.state == "BROKEN"):
        message = f"platform {broken.name!r} should work on this machine and does not: {broken.result.reason}"
        if not fallback:
            raise PlatformBroken(
                f"{message}. Repair it, name another with --platform, or allow another with --allow-platform-fallback"
            ) from broken.cause
        log.warning(message, platform=broken.name)
    available = [candidate for candidate in contenders if candidate.state == "AVAILABLE"]
    if not available:
        found = "; ".join(f"{c.name} is {c.state}: {c.result.reason}" for c in candidates)
        raise PlatformNotFound(f"no platform can run here ({found or 'no plugin is installed: pip install core[cpu]'})")
    top = max(candidate.result.score for candidate in available)
    best = [candidate for candidate in available if candidate.result.score == top]
    if len(best) > 1:
        names = ", ".join(f"{c.name} ({c.found.distribution})" for c in best)
        raise PlatformNotFound(f"{names} are equally good here, with score {top}; name one with --platform")
    return best[0]


def _listed(names: list[str]) -> str:
    return f"installed: {', '.join(names)}" if names else "none is installed"


# --- creating ------------------------------------------------------------------------------------------------


def create(chosen: ChosenPlatform) -> Platform:
    """Make the platform that was chosen; no other plugin is imported.

    Raises what its `create_platform` raises of our own errors; anything else becomes PlatformBroken with its cause.
    """
    found = discover(chosen.name)
    if not found:
        raise PlatformNotFound(f"platform {chosen.name!r} was chosen and is no longer installed; start again")
    plugin = found[0].loaded()
    where = f"plugin {plugin.name!r} of {plugin.distribution}"
    try:
        platform = plugin.hooks.create_platform(ctx=PlatformContext(options=dict(chosen.options)))
    except CoreError:
        raise
    except Exception as error:
        raise PlatformBroken(f"{where} could not make its platform: {_describe(error)}") from error
    if not isinstance(platform, Platform):
        raise PluginLoadError(f"{where}: create_platform() gave {platform!r} where core.platform.Platform is due")
    return platform
