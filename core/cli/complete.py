"""`core complete`: let a model that is served continue a text."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from core.cli import http
from core.errors import ConfigError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("complete", help="let a model that is served continue a text")
    parser.add_argument("prompt", nargs="?", help="the text; default: standard input")
    parser.add_argument("--echo", action="store_true", help="print the prompt too")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT (repeatable)")
    http.add_arguments(parser, max_tokens=256)


def run(args: argparse.Namespace) -> int:
    """Print the continuation as it comes. Raises ServerError."""
    if args.prompt is None and sys.stdin.isatty():
        raise ConfigError("prompt", "give a text: core complete 'Once upon a time'")
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    asyncio.run(_complete(args, prompt))
    return 0


async def _complete(args: argparse.Namespace, prompt: str) -> None:
    body = {"prompt": prompt, "echo": args.echo, "stop": args.stop, **http.sampling(args)}
    async with http.connect(args) as connection:
        async for choice in connection.stream("/v1/completions", body):
            print(choice["text"], end="", flush=True)
    print()
