"""Probing the platforms' plugins, choosing one, making it.

The parent process calls `choose` once; every other process receives the `ChosenPlatform`, and the engine's calls
`create`.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from core import envs
from core.config import Options, nearest, parse_named_options
from core.errors import ConfigError, CoreError, PlatformBroken, PlatformNotFound, PluginLoadError
from core.logs import get_logger
from core.platform import ChosenPlatform, Platform, PlatformContext, ProbeEnv, ProbeResult
from core.plugins.loading import PLATFORMS, FoundPlugin, LoadedPlugin, describe, find, heard, installed, warn_of_output
from core.plugins.options import PLATFORM_OPT, check_options, check_owners, listed

log = get_logger("plugins")


def discover(only: str | None = None) -> list[FoundPlugin]:
    """Every installed platform, by name, each loaded in isolation; with `only`, nothing else is imported."""
    return find(PLATFORMS, only)


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


def probe(found: FoundPlugin, options: Mapping[str, str]) -> Candidate:
    """Ask one plugin about this machine. Raises ConfigError on a bad platform option."""
    (candidate,) = probe_all([found], lambda name: options)
    return candidate


def probe_all(found: Sequence[FoundPlugin], options_of: Callable[[str], Mapping[str, str]]) -> list[Candidate]:
    """Ask plugins about this machine, side by side and for at most CORE_PROBE_TIMEOUT seconds altogether.

    `options_of` gives a platform's own options. Raises ConfigError on a bad one.
    """
    timeout_s = envs.read().probe_timeout
    until = time.monotonic() + timeout_s
    with _heard_by_thread() as printed:
        probes = [_start(one.plugin, dict(options_of(one.name))) if one.plugin else None for one in found]
        for started in filter(None, probes):
            started.thread.join(max(0.0, until - time.monotonic()))
    candidates = []
    for one, running in zip(found, probes, strict=True):
        if running is None:
            candidates.append(Candidate(one, ProbeResult(state="BROKEN", reason=str(one.error)), one.error))
        else:
            text = printed.get(running.thread, io.StringIO()).getvalue()
            warn_of_output(f"plugin {one.name!r} of {one.distribution}", "while it is probed", text)
            candidates.append(_judge(one, running.answers, timeout_s))
    return candidates


@dataclass(frozen=True)
class _Probe:
    thread: threading.Thread
    answers: list[Any]  # empty until it has answered


def _start(plugin: LoadedPlugin, options: dict[str, str]) -> _Probe:
    check_options(PLATFORM_OPT, plugin, options)
    answers: list[Any] = []
    env = ProbeEnv(options=options)
    # A daemon: a probe stuck in a driver call cannot be stopped, and must not keep this process from ending.
    thread = threading.Thread(
        target=_answer, args=(plugin.hooks.probe, env, answers), name=f"probe-{plugin.name}", daemon=True
    )
    thread.start()
    return _Probe(thread, answers)


def _answer(hook: Any, env: ProbeEnv, answers: list[Any]) -> None:
    try:
        answers.append(hook(env=env))
    except BaseException as error:  # handed to the thread that waits, which judges it
        answers.append(error)


def _judge(found: FoundPlugin, answers: list[Any], timeout_s: float) -> Candidate:
    if not answers:
        return _broken(
            found, f"its probe gave no answer in {timeout_s:g} s; CORE_PROBE_TIMEOUT gives a slow driver more"
        )
    answer = answers[0]
    if isinstance(answer, ConfigError):
        raise answer
    if isinstance(answer, ProbeResult):
        return Candidate(found, answer)
    if isinstance(answer, BaseException):
        return _broken(found, f"its probe raised {describe(answer)}", answer)
    return _broken(found, f"its probe gave {answer!r} where core.platform.ProbeResult is due")


def _broken(found: FoundPlugin, reason: str, cause: BaseException | None = None) -> Candidate:
    return Candidate(found, ProbeResult(state="BROKEN", reason=f"{reason} ({found.distribution})"), cause)


class _ByThread(io.TextIOBase):
    """A standard output that keeps what the threads of probes print, and passes on what others do."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.printed: dict[threading.Thread, io.StringIO] = {}

    def write(self, text: str) -> int:
        thread = threading.current_thread()
        if not thread.name.startswith("probe-"):
            return int(self._real.write(text))
        return self.printed.setdefault(thread, io.StringIO()).write(text)


@contextlib.contextmanager
def _heard_by_thread() -> Iterator[dict[threading.Thread, io.StringIO]]:
    output = _ByThread(sys.stdout)
    with contextlib.redirect_stdout(output):
        yield output.printed


# --- choosing ------------------------------------------------------------------------------------------------


def choose(options: Options) -> ChosenPlatform:
    """The one platform to run on: the one that was named, or the best that is available.

    Raises PlatformNotFound, PlatformBroken, PluginLoadError or ApiVersionError, with the cause, or ConfigError
    for a platform option that nothing takes. Nothing is ever passed over in silence.
    """
    names = installed(PLATFORMS)
    check_owners(PLATFORM_OPT, options.platform_opt, names, kind="platform", state="installed")
    if options.platform is not None:
        return _choose_named(options.platform, options, names)
    candidates = probe_all(discover(), lambda name: parse_named_options(PLATFORM_OPT, options.platform_opt, name))
    best = _choose_best(_contenders(candidates), candidates, fallback=options.allow_platform_fallback)
    return _chosen(best, options)


def _chosen(candidate: Candidate, options: Options) -> ChosenPlatform:
    return ChosenPlatform(
        candidate.name, parse_named_options(PLATFORM_OPT, options.platform_opt, candidate.name), candidate.result.reason
    )


def _choose_named(name: str, options: Options, names: list[str]) -> ChosenPlatform:
    if name not in names:
        raise PlatformNotFound(
            f"--platform {name}: no such platform is installed{nearest(name, names)} ({listed(names)})"
        )
    (found,) = discover(name)
    found.loaded()
    candidate = probe(found, parse_named_options(PLATFORM_OPT, options.platform_opt, name))
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
        with heard(where, "when its platform is made"):
            platform = plugin.hooks.create_platform(ctx=PlatformContext(options=dict(chosen.options)))
    except CoreError:
        raise
    except Exception as error:
        raise PlatformBroken(f"{where} could not make its platform: {describe(error)}") from error
    if not isinstance(platform, Platform):
        raise PluginLoadError(f"{where}: create_platform() gave {platform!r} where core.platform.Platform is due")
    return platform
