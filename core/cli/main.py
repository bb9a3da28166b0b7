"""`core`: finds the command, imports only that one, and says what went wrong in one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import core
from core.config import nearest
from core.errors import ConfigError, CoreError

#: Command -> what `core --help` says of it. The module is `core.cli.<command>`, with `_` for `-`.
COMMANDS = {
    "serve": "serve a model over HTTP, with OpenAI's API",
    "download": "fetch a model from the hub or from S3",
    "chat": "talk with a model that is served",
    "complete": "let a model that is served continue a text",
    "run-batch": "answer a file of requests, in OpenAI's batch format",
    "plan": "show where a model's memory would go, without loading it",
    "simulate": "replay a trace of requests on simulated hardware, in virtual time",
    "platforms": "show the hardware platforms, their state, and why",
    "plugins": "show the other plugins, and what they add",
    "conformance": "hold a platform against the contract",
    "bench": "measure latency, throughput, a server under load, or the start-up",
}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ConfigErrors, with the nearest name that would have been right."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Nothing is left over: what is not known is an error here, where its neighbours are known."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            kind = "option" if flag.startswith("-") else "argument"
            raise ConfigError(flag, f"no such {kind} of `{self.prog}`{nearest(flag, known)}")
        return parsed, []

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(self.prog, f"{message}; see `{self.prog} --help`")


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns its exit status; 1 after an error that is ours to explain."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except CoreError as error:
        if os.environ.get("CORE_LOG_LEVEL") == "debug":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has read enough; Python must not try to flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"core {core.__version__}")
        return 0
    command = argv[0]
    if command not in COMMANDS:
        kind = "option" if command.startswith("-") else "command"
        raise ConfigError(command, f"no such {kind}{nearest(command, [*COMMANDS, '--help', '--version'])}")
    module = importlib.import_module(f"core.cli.{command.replace('-', '_')}")
    parser = Parser(prog="core")
    module.add_parser(parser.add_subparsers(dest="command", required=True))
    status: int = module.run(parser.parse_args(argv))
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: core COMMAND …",
            "",
            "An LLM serving engine.",
            "",
            *lines,
            "",
            "`core COMMAND --help` says more; `core --version`.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
