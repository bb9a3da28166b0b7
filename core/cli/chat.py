"""`core chat`: talk with a model that is served."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from core.cli import http
from core.cli.http import Connection, ServerError

_HELP = """/help    this
/clear   forget the conversation
/system  TEXT  begin again under another system message; without TEXT, under none
/retry   answer the last message again
/quit    end (so does Ctrl-D); Ctrl-C ends an answer"""
_HISTORY_LINES = 1000


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "chat",
        help="talk with a model that is served",
        description="Talk with a model. Piped in, standard input is one message and the answer is all that is printed.",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    http.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Converse until the user ends it. Raises ServerError."""
    if sys.stdin.isatty():
        _load_history()
        Conversation(args).converse()
    else:
        Conversation(args).say(sys.stdin.read().strip())
    return 0


class Conversation:
    """The messages so far, and how to add to them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._messages: list[dict[str, str]] = []
        self._begin(args.system)

    def _begin(self, system: str | None) -> None:
        self._system = system
        self._messages = [{"role": "system", "content": system}] if system else []

    def converse(self) -> None:
        """Read lines until the end: messages, and commands that begin with a slash."""
        print("/help lists the commands")
        while (line := _read_line()) is not None and line != "/quit":
            if line.startswith("/"):
                self._command(*line.partition(" ")[::2])
            elif line:
                self._say_or_explain(line)

    def _command(self, name: str, argument: str) -> None:
        if name == "/clear":
            self._begin(self._system)
        elif name == "/system":
            self._begin(argument.strip() or None)
        elif name == "/retry":
            self._retry()
        else:
            print(_HELP if name == "/help" else f"no such command: {name}\n{_HELP}")

    def _retry(self) -> None:
        users = [index for index, message in enumerate(self._messages) if message["role"] == "user"]
        if not users:
            print("nothing was said yet")
            return
        text = self._messages[users[-1]]["content"]
        del self._messages[users[-1] :]
        self._say_or_explain(text)

    def _say_or_explain(self, text: str) -> None:
        try:
            self.say(text)
        except ServerError as error:
            print(f"error: {error}", file=sys.stderr)

    def say(self, text: str) -> None:
        """Send a message, print the answer as it comes, and remember both. Raises ServerError; then neither counts."""
        parts: list[str] = []
        message = {"role": "user", "content": text}
        try:
            asyncio.run(self._stream([*self._messages, message], parts))
        except KeyboardInterrupt:
            if not parts:
                print()
                return
        print()
        self._messages += [message, {"role": "assistant", "content": "".join(parts)}]

    async def _stream(self, messages: list[dict[str, str]], parts: list[str]) -> None:
        async with http.connect(self._args) as connection:
            await _print(connection, {"messages": messages, **http.sampling(self._args)}, parts)


async def _print(connection: Connection, body: dict[str, Any], parts: list[str]) -> None:
    async for choice in connection.stream("/v1/chat/completions", body):
        text = choice["delta"].get("content") or ""
        parts.append(text)
        print(text, end="", flush=True)


def _read_line() -> str | None:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _load_history() -> None:
    """Lines of earlier conversations with the arrow keys, kept where the XDG base directory specification says."""
    import atexit
    import os
    import readline

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "core"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        history = state / "chat_history"
        history.touch(mode=0o600)
        readline.read_history_file(history)
    except OSError:
        return  # a read-only home has no history
    readline.set_history_length(_HISTORY_LINES)
    atexit.register(readline.write_history_file, history)
