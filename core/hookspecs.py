"""What a platform plugin implements: three hooks, called once at start-up. The step loop never goes through them.

A plugin is a module (or any object) that a distribution names in the entry-point group `core.platforms`:

    [project.entry-points."core.platforms"]
    acme = "acme_core.plugin"

and whose functions carry `hookimpl`:

    @hookimpl
    def probe(env: ProbeEnv) -> ProbeResult: ...

The process that chooses a platform imports that module, and does so for every installed plugin. So the module
imports neither torch nor a vendor's library at its top; `create_platform` may, since it runs in the engine's
process and only for the platform that was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pluggy

from core.config import nearest
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

PROJECT = "core"

hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a plugin's functions as implementations of the hooks below.
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def plugin_info() -> PluginInfo:  # type: ignore[empty-body]  # a specification has no body
    """Who made the plugin, and the contract it was written for: constants.

    `name` equals the name of the entry point. `api` is the `core.platform.API_VERSION` that the plugin was written
    against, written out as numbers: reading it from the installed core would make the check say nothing.
    """


@hookspec(firstresult=True)
def probe(env: ProbeEnv) -> ProbeResult:  # type: ignore[empty-body]
    """Look whether the hardware is here and whether this installation can drive it.

    May read files under /proc, /sys and /dev, look for modules with `importlib.util.find_spec`, and load a library
    that only lists devices. May not create a device context, import torch, print, change the environment, or leave
    anything behind: it runs in a process that will fork or spawn others, and may run more than once. It has a few
    seconds; a probe that hangs counts as BROKEN. Raises ConfigError on a platform option it does not know; any
    other exception counts as BROKEN, with the exception as the cause.
    """


@hookspec(firstresult=True)
def create_platform(ctx: PlatformContext) -> Platform:  # type: ignore[empty-body]
    """Make the platform, in the engine's process. May import torch, open devices, set thread counts.

    Raises PlatformBroken or Unsupported with a reason, or ConfigError on a platform option.
    """


_OptionsType = TypeVar("_OptionsType", bound=msgspec.Struct)


def parse_own_options(platform: str, given: Mapping[str, str], into: type[_OptionsType]) -> _OptionsType:
    """The options of `platform` as the Struct that declares them, text converted to its fields' types.

    Raises ConfigError, naming the option as the user wrote it, on an unknown key or a value that does not fit.
    """
    known = list(into.__struct_fields__)
    for key in given:
        if key not in known:
            hint = nearest(key, known) or f"; it has {', '.join(known)}"
            raise ConfigError(f"--platform-opt {platform}.{key}", f"platform {platform!r} has no such option{hint}")
    try:
        return msgspec.convert(dict(given), into, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`")
        raise ConfigError(f"--platform-opt {platform}.{key}", f"{given[key]!r} will not do: {message}") from error
