"""Command-line flags made from option structs: one table, in `core.config.Options`, for flags and keywords alike.

A field `max_num_seqs: Annotated[int | None, Meta(description=…)]` becomes `--max-num-seqs INT` with that help; a
bool becomes `--x/--no-x`; a tuple a flag that may be repeated. What is not given stays out of the namespace, so
the struct's defaults are the only ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from core.config import Options
from core.errors import ConfigError

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


def flag(field: str) -> str:
    """`max_num_seqs` as `--max-num-seqs`."""
    return "--" + field.replace("_", "-")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """A flag for each of the engine's options."""
    add_options(parser, Options, "engine options")


def engine_options(args: argparse.Namespace) -> Options:
    """The engine's options as given. Raises ConfigError naming the flag."""
    return given_options(args, Options)


def add_options(parser: argparse.ArgumentParser, options: type[msgspec.Struct], title: str) -> None:
    """A flag for each field of a struct of options."""
    group = parser.add_argument_group(title)
    for field in msgspec.structs.fields(options):
        kind, text = _described(field)
        group.add_argument(
            flag(field.name),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            **_arguments(kind),
        )


def describe_options(options: type[msgspec.Struct]) -> dict[str, str]:
    """What the fields of a struct of options are for, with their defaults."""
    return {field.name: _described(field)[1] for field in msgspec.structs.fields(options)}


def given_options(args: argparse.Namespace, options: type[OptionsT]) -> OptionsT:
    """The struct with what was given on the command line. Raises ConfigError naming the flag."""
    values = {name: value for name, value in vars(args).items() if name in options.__struct_fields__}
    try:
        return msgspec.convert(values, options)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise ConfigError(flag(path.rstrip("`")), message) from error


def changed(options: msgspec.Struct) -> dict[str, Any]:
    """The options that are not at their defaults."""
    defaults = type(options)()
    names = options.__struct_fields__
    return {name: value for name in names if (value := getattr(options, name)) != getattr(defaults, name)}


def served_by(model: str | None, *options: msgspec.Struct) -> list[str]:
    """The arguments of a `core serve` of that model with those options."""
    arguments = [model] if model else []
    for name, value in (item for each in options for item in changed(each).items()):
        if isinstance(value, bool):
            arguments.append(flag(name) if value else flag(f"no_{name}"))
        else:
            values = value if isinstance(value, tuple) else (value,)
            arguments += [f"{flag(name)}={each}" for each in values]
    return arguments


def count(text: str) -> int:
    """An argument that is a whole number from 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _described(field: msgspec.structs.FieldInfo) -> tuple[inspect.Type, str]:
    """A field's type without None, and its description with the default."""
    kind, text = inspect.type_info(field.type), ""
    if isinstance(kind, inspect.Metadata):
        text = str((kind.extra_json_schema or {}).get("description", ""))
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        (kind,) = (member for member in kind.types if not isinstance(member, inspect.NoneType))
    if field.default not in (None, (), msgspec.NODEFAULT):
        text += f" (default: {_shown(field.default)})"
    return kind, text


def _arguments(kind: inspect.Type) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    match kind:
        case inspect.BoolType():
            return {"action": argparse.BooleanOptionalAction}
        case inspect.LiteralType(values):
            return {"choices": values}
        case inspect.VarTupleType():
            return {"action": "append", "metavar": "VALUE"}
        case inspect.IntType():
            return {"type": _number(int, "a whole number"), "metavar": "INT"}
        case inspect.FloatType():
            return {"type": _number(float, "a number"), "metavar": "NUMBER"}
        case inspect.StrType():
            return {"metavar": "TEXT"}
    raise TypeError(f"no flag can be made of a field of type {kind}")


def _number(kind: type[int] | type[float], words: str) -> Callable[[str], int | float]:
    def read(text: str) -> int | float:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}") from None

    return read


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default)
