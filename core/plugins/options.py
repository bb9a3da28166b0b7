"""What users give a plugin as `NAME.KEY=VALUE`, held against the plugins there are and the schema each declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.config import nearest, parse_named_options
from core.errors import ConfigError
from core.hookspecs import parse_own_options
from core.plugins.loading import LoadedPlugin

PLATFORM_OPT = "--platform-opt"
PLUGIN_OPT = "--plugin-opt"


def listed(names: Sequence[str], state: str = "installed") -> str:
    """The names, for a message about one that is not among them."""
    return f"{state}: {', '.join(names)}" if names else f"none is {state}"


def check_owners(flag: str, pairs: tuple[str, ...], names: Sequence[str], *, kind: str, state: str) -> None:
    """Raises ConfigError for a pair that is malformed, or of a plugin that is not among `names`."""
    for pair in pairs:
        owner = pair.partition(".")[0]
        parse_named_options(flag, (pair,), owner)  # its form
        if owner not in names:
            hint = nearest(owner, list(names))
            raise ConfigError(f"{flag} {pair}", f"no {kind} {owner!r} is {state}{hint} ({listed(names, state)})")


def check_options(flag: str, plugin: LoadedPlugin, given: Mapping[str, str]) -> None:
    """Hold a plugin's options against its schema. Raises ConfigError."""
    schema = plugin.info.options
    if schema is not None:
        parse_own_options(plugin.name, given, schema, flag=flag)
    elif given:
        raise ConfigError(f"{flag} {plugin.name}.{next(iter(given))}", f"{plugin.name!r} has no options")
