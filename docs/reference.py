"""Writes docs/reference/cli.md and environment.md from the commands' own parsers and `core.envs`. `make docs` runs it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from core import envs
from core.cli.main import COMMANDS, Parser

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/reference.py from the source: change that, then `make docs`. -->\n"

#: Variables of the libraries that core reads the world through, as far as operators meet them.
OF_OTHERS = {
    "HF_TOKEN": "opens gated and private models of the hub",
    "HF_ENDPOINT": "another hub than huggingface.co",
    "HF_HOME": "where models are kept, those of S3 included; default: `~/.cache/huggingface`",
    "HF_HUB_OFFLINE": "1: nothing is fetched from the hub",
    "AWS_ENDPOINT_URL": "another store than AWS's for `s3://`",
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_REGION …": "boto3's, for `s3://`",
}


def parsers() -> dict[str, Parser]:
    """Each command's parser, those of its subcommands after it: `bench`, `bench serve` …"""
    found: dict[str, Parser] = {}
    for command in COMMANDS:
        root = Parser(prog="core")
        module = importlib.import_module(f"core.cli.{command.replace('-', '_')}")
        commands: argparse._SubParsersAction[Parser] = root.add_subparsers()
        module.add_parser(commands)
        for name, parser in _below("", commands):
            found[name] = parser
    return found


def _below(prefix: str, commands: argparse._SubParsersAction[Parser]) -> Iterator[tuple[str, Parser]]:
    for name, parser in commands.choices.items():
        yield f"{prefix}{name}", parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from _below(f"{prefix}{name} ", action)


def options(parser: Parser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """The parser's groups that have arguments, with them; `--help` is every command's."""
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if actions:
            yield group.title or "", actions


def cli_page() -> str:
    lines = [NOTE, "# Commands", "", "What `core COMMAND --help` says, in one place.", ""]
    for name, parser in parsers().items():
        lines += [f"## core {name}", ""]
        if name in COMMANDS:
            lines += [f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.", ""]
        for title, actions in options(parser):
            lines += [f"**{title}**", "", "| | |", "|---|---|"]
            lines += [f"| {_written(action)} | {_explained(action)} |" for action in actions]
            lines.append("")
    return "\n".join(lines)


def _written(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction) else _value(action)
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _value(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return f" {metavar}" if action.choices is None else " …"


def _explained(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    if action.choices is not None:
        text += f"; one of {', '.join(f'`{choice}`' for choice in action.choices)}"
    return text.replace("|", "\\|").replace("<", "&lt;")


def environment_page() -> str:
    lines = [NOTE, "# Environment variables", ""]
    lines += [
        "A variable is for what belongs to the surroundings; what is set for one run is a flag. An unknown `CORE_*` is named at the"
    ]
    lines += [
        "start, with the nearest that exists; a value that does not fit ends it.",
        "",
        "| variable | default | what |",
        "|---|---|---|",
    ]
    for field in msgspec.structs.fields(envs.Environment):
        described = msgspec.inspect.type_info(field.type)
        assert isinstance(described, msgspec.inspect.Metadata)
        text = (described.extra_json_schema or {})["description"]
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{envs.variable(field.name)}` | {default} | {text} |")
    lines += [f"| `{name}` | | {text} |" for name, text in envs.READ_ELSEWHERE.items()]
    lines += ["", "Of the libraries that models come through:", "", "| variable | what |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in OF_OTHERS.items()]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    return {REFERENCE / "cli.md": cli_page(), REFERENCE / "environment.md": environment_page()}


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
