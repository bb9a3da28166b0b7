"""`core run-batch`: answer a file of requests, in OpenAI's batch format."""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from core import envs
from core.batch.files import AnswerFile, read_requests
from core.batch.run import BatchRunner
from core.bench import server
from core.cli.options import add_engine_options, add_options, count, engine_options, given_options, positive, served_by
from core.progress import ProgressBar
from core.server.options import ParserOptions


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "run-batch",
        help="answer a file of requests, in OpenAI's batch format",
        description="Answer a file of requests. Run again after it was ended, it goes on with those that are left.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, .gguf file or hub name; default: the demo"
    )
    parser.add_argument("-i", "--input-file", type=Path, required=True, metavar="FILE", help="requests, a line each")
    parser.add_argument(
        "-o", "--output-file", type=Path, required=True, metavar="FILE", help="answers, appended as they come"
    )
    parser.add_argument("--url", help="a server that runs already; default: start one, and end it afterwards")
    parser.add_argument("--url-api-key", metavar="KEY", help="that server's key (default: CORE_API_KEY)")
    parser.add_argument(
        "--concurrency", type=count, default=128, metavar="N", help="requests in flight (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=positive, default=600.0, metavar="S", help="seconds a server may take to start (default: 600)"
    )
    add_options(parser, ParserOptions, "parser options")
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Returns 0 once every line is answered, be the answer a refusal. Raises CoreError."""
    total = sum(1 for _ in read_requests(args.input_file))  # the whole file is read through before a model is loaded
    with ExitStack() as stack:
        answers = stack.enter_context(AnswerFile(args.output_file))
        known = sum(request.custom_id in answers.done for request in read_requests(args.input_file))
        if known == total:
            print(f"{args.output_file}: all {total} requests are answered already", file=sys.stderr)
            return 0
        url = args.url or stack.enter_context(server.served(_serve_arguments(args), args.timeout)).url
        bar = stack.enter_context(ProgressBar("run-batch", total=total, unit="requests"))
        bar.advance(known)
        runner = BatchRunner(
            url,
            answers,
            lambda tokens: bar.advance(1, tokens=tokens),
            concurrency=args.concurrency,
            api_key=args.url_api_key or envs.read().api_key,
        )
        tally = asyncio.run(runner.run(read_requests(args.input_file)))
    print(
        f"{args.output_file}: {tally.answered} requests answered ({tally.refused} of them refused), {known} before",
        file=sys.stderr,
    )
    return 0


def _serve_arguments(args: argparse.Namespace) -> list[str]:
    return served_by(args.model, engine_options(args), given_options(args, ParserOptions))
