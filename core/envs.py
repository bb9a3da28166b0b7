"""Every environment variable that `core` reads: one typed table, loud on bad values.

A field of `Environment` is read from `CORE_` and its name in capitals. Options that a user sets for one run are
flags (`core.config.Options`); a variable is for what belongs to the surroundings, like the format of the logs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from core.config import nearest
from core.errors import ConfigError

PREFIX = "CORE_"

#: Read by others under our prefix, so known here: the native CPU kernels, and setup.py when it builds them.
READ_ELSEWHERE = {
    "CORE_CPU_ISA": "instruction-set tier of the native kernels, one of those that `core platforms -v` lists; default: the best",
    "CORE_CXX_WERROR": "1: setup.py makes the compiler's warnings errors, for people who change csrc/",
    "CORE_TARGET_DEVICE": "what setup.py builds kernels for: cpu or none; default: cpu",
}


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The variables, with their defaults."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severe log messages to show")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Meta(description="text for people, json for collectors: one object a line")
    ] = "text"
    probe_timeout: Annotated[
        float, Meta(gt=0, description="seconds that platforms get, side by side, to say whether their hardware is here")
    ] = 3.0
    api_key: Annotated[
        str | None, Meta(description="keys that requests must bear, between commas, where no option gives any")
    ] = None
    usage_source: Annotated[
        str,
        Meta(
            description="how this copy is run, which images set; told by /version, metrics and the log, and sent nowhere"
        ),
    ] = "unknown"
    admin_key: Annotated[str | None, Meta(description="the same for --admin-key")] = None


def variable(field: str) -> str:
    """The variable that `field` is read from."""
    return PREFIX + field.upper()


def read(environ: Mapping[str, str] | None = None) -> Environment:
    """The variables of `environ` (default: this process's). An empty one counts as unset. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    given = {field: environ[variable(field)] for field in Environment.__struct_fields__ if environ.get(variable(field))}
    for field in msgspec.structs.fields(Environment):
        if field.name not in given:
            continue
        try:
            msgspec.convert(given[field.name], field.type, strict=False)
        except msgspec.ValidationError as error:
            description = msgspec.inspect.type_info(field.type)
            raise ConfigError(
                variable(field.name), f"{given[field.name]!r} is not a value of it{_choices(description)}"
            ) from error
    return msgspec.convert(given, Environment, strict=False)


def _choices(described: msgspec.inspect.Type) -> str:
    inner = described.type if isinstance(described, msgspec.inspect.Metadata) else described
    return f"; choose {', '.join(map(str, inner.values))}" if isinstance(inner, msgspec.inspect.LiteralType) else ""


def unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """A message for each `CORE_*` variable that nothing reads, with the nearest that something does."""
    environ = os.environ if environ is None else environ
    known = [*map(variable, Environment.__struct_fields__), *READ_ELSEWHERE]
    strange = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    return [f"{name} is set, but nothing reads it{nearest(name, known)}" for name in strange]
