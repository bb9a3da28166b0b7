"""`core bench`: latency, throughput, a server under load, or the start-up."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from core.bench import load, server
from core.bench.figures import Figures, machine, save, show
from core.cli.options import add_engine_options, changed, count, engine_options, positive, served_by
from core.progress import ProgressBar

if TYPE_CHECKING:
    from core import LLM


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command and what it can measure."""
    parser = subparsers.add_parser("bench", help="measure latency, throughput, a server under load, or the start-up")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="latency|throughput|serve|startup")
    latency = _kind(kinds, "latency", "how long one batch takes, in this process", _latency)
    latency.add_argument("--batch-size", type=count, default=8, metavar="N", help="(default: %(default)s)")
    latency.add_argument("--warmup", type=count, default=2, metavar="N", help="runs before (default: %(default)s)")
    latency.add_argument("--runs", type=count, default=10, metavar="N", help="runs that count (default: %(default)s)")
    throughput = _kind(kinds, "throughput", "tokens a second over many prompts, in this process", _throughput)
    throughput.add_argument("--requests", type=count, default=64, metavar="N", help="(default: %(default)s)")
    for kind in (latency, throughput):
        kind.add_argument("--input-tokens", type=count, default=32, metavar="N", help="(default: %(default)s)")
        kind.add_argument("--output-tokens", type=count, default=64, metavar="N", help="(default: %(default)s)")
    _add_load(_kind(kinds, "serve", "what clients see of a server under load", _serve))
    startup = _kind(kinds, "startup", "from `core serve` to ready and to the first token", _startup)
    startup.add_argument("--runs", type=count, default=5, metavar="N", help="(default: %(default)s)")
    _add_timeout(startup)


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="a server that runs already; default: start one, and end it afterwards")
    parser.add_argument("--served-model", metavar="NAME", help="the model's name there (default: whichever it serves)")
    parser.add_argument("--requests", type=count, default=32, metavar="N", help="(default: %(default)s)")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=count, default=8, metavar="N", help="in flight (default: %(default)s)")
    loop.add_argument("--rate", type=positive, metavar="R", help="requests a second, at random times (Poisson)")
    parser.add_argument("--input-words", type=count, default=128, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--output-tokens", type=count, default=64, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--shared-prefix-words", type=int, default=0, metavar="N", help="the same ones in all prompts")
    parser.add_argument("--load-seed", type=int, default=0, metavar="N", help="of prompts and times")
    _add_timeout(parser)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=positive, default=600.0, metavar="S", help="seconds a server may take to start (default: 600)"
    )


def _kind(
    kinds: argparse._SubParsersAction[Any], name: str, text: str, measure: Callable[[argparse.Namespace], Figures]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(name, help=text, description=f"Measure {text}.")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory, .gguf file or hub name; default: the demo"
    )
    parser.add_argument("--json", metavar="FILE", help="append the figures to FILE, a line of JSON, times in seconds")
    parser.add_argument("--label", default="", help="a name for this run, in the title and the JSON")
    add_engine_options(parser)
    parser.set_defaults(measure=measure)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, show, save. Returns 1 where a request failed. Raises CoreError."""
    figures = args.measure(args)
    show(f"{args.kind} {args.label}".strip() + f" on {machine()}", figures)
    if args.json:
        save(args.json, {"bench": args.kind, "label": args.label, "machine": machine(), "model": args.model, **figures})
    return 1 if figures.get("errors") else 0


# --- in this process -----------------------------------------------------------------------------------------


@contextmanager
def _loaded(args: argparse.Namespace) -> Iterator[LLM]:
    from core import LLM  # torch: only where it is used

    options = changed(engine_options(args))
    with LLM(args.model, **options) as llm:
        yield llm


def _latency(args: argparse.Namespace) -> Figures:
    from core.bench import offline

    with _loaded(args) as llm, ProgressBar("latency", total=args.warmup + args.runs, unit="runs") as bar:
        return offline.latency(
            llm,
            batch_size=args.batch_size,
            input_tokens=args.input_tokens,
            output_tokens=args.output_tokens,
            warmup=args.warmup,
            runs=args.runs,
            done=lambda: bar.advance(1),
        )


def _throughput(args: argparse.Namespace) -> Figures:
    from core.bench import offline

    with _loaded(args) as llm:
        return offline.throughput(
            llm, requests=args.requests, input_tokens=args.input_tokens, output_tokens=args.output_tokens
        )


# --- a server ------------------------------------------------------------------------------------------------


def _serve(args: argparse.Namespace) -> Figures:
    workload = load.Workload(
        requests=args.requests,
        input_words=args.input_words,
        output_tokens=args.output_tokens,
        concurrency=args.concurrency,
        rate=args.rate,
        shared_prefix_words=args.shared_prefix_words,
        seed=args.load_seed,
    )
    with ExitStack() as stack:
        url = (
            args.url
            or stack.enter_context(server.served(served_by(args.model, engine_options(args)), args.timeout)).url
        )
        bar = stack.enter_context(ProgressBar("serve", total=args.requests, unit="requests"))

        def done(sample: load.Sample) -> None:
            bar.advance(1, tokens=sample.output_tokens)

        figures = asyncio.run(load.run(url, args.served_model, workload, done))
    loop = {"rate": args.rate} if args.rate else {"concurrency": args.concurrency}
    asked = {
        "url": url,
        **loop,
        "input_words": args.input_words,
        "shared_prefix_words": args.shared_prefix_words,
        "output_tokens_each": args.output_tokens,
    }
    return {**asked, **figures}


def _startup(args: argparse.Namespace) -> Figures:
    samples = []
    with ProgressBar("startup", total=args.runs, unit="starts") as bar:
        for _ in range(args.runs):
            samples.append(server.startup(served_by(args.model, engine_options(args)), args.timeout))
            bar.advance(1)
    return server.startup_figures(samples)
