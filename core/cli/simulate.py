"""`core simulate`: what a device that is not here would do with a trace of requests."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from core import plugins
from core.bench.figures import Figures, show
from core.cli.options import add_engine_options, count, engine_options, positive
from core.config import Config, Options, resolve
from core.errors import ConfigError
from core.platform import ChosenPlatform
from core.progress import ProgressBar
from core.simulate.trace import TraceRequest, read_trace, synthetic_trace

#: The platform that simulates, unless another one is named.
PLATFORM = "sim"

_SYNTHETIC = ("num_requests", "request_rate", "input_len", "output_len", "prefix_len")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "simulate",
        help="replay a trace of requests on simulated hardware, in virtual time",
        description="Replay a trace of requests through the engine on simulated hardware, in virtual time. "
        "Of the model only its config.json is needed.",
    )
    parser.add_argument("--model", metavar="MODEL", help="directory, .gguf file or hub name; default: the demo")
    parser.add_argument("--profile", metavar="NAME|FILE", help="the device (default: the platform's)")
    parser.add_argument(
        "--tp", dest="tensor_parallel_size", type=count, default=argparse.SUPPRESS, metavar="N",
        help="short for --tensor-parallel-size",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, times in seconds")
    _add_load(parser.add_argument_group("load"))
    objective = parser.add_argument_group(
        "objective", "find the number of devices that keep the 99th percentile within"
    )
    objective.add_argument("--slo-ttft-ms", type=positive, metavar="MS", help="time to first token")
    objective.add_argument("--slo-tpot-ms", type=positive, metavar="MS", help="time per output token after it")
    add_engine_options(parser)


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--trace", metavar="FILE", help="JSON lines: arrival (s), prompt_tokens, output_tokens …")
    made = argparse.SUPPRESS  # so that one given beside --trace is seen
    group.add_argument("--num-requests", type=count, default=made, metavar="N", help="without a trace (default: 1000)")
    group.add_argument(
        "--request-rate", type=positive, default=made, metavar="R", help="a second; default: all at once"
    )
    group.add_argument("--input-len", type=count, default=made, metavar="N", help="tokens (default: 512)")
    group.add_argument("--output-len", type=count, default=made, metavar="N", help="tokens (default: 128)")
    group.add_argument("--prefix-len", type=count, default=made, metavar="N", help="tokens that all prompts share")


def run(args: argparse.Namespace) -> int:
    """Simulate and print. Returns 1 where no number of devices meets the objective. Raises CoreError."""
    options = _options(args)
    config, chosen = resolve(args.model, options), plugins.choose(options)
    requests = _requests(args, config)
    began = time.perf_counter()
    figures, met = _simulate(args, config, chosen, requests)
    device = {"model": config.model.name, "platform": chosen.name, "device": chosen.reason}
    figures = {**device, **figures, "wall_s": time.perf_counter() - began}
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        show(f"{config.model.name}: {chosen.reason}", figures)
    return 0 if met else 1


def _options(args: argparse.Namespace) -> Options:
    """The engine's options: no weights, virtual time, and a queue that takes all of a trace unless one is given."""
    options = engine_options(args)
    platform = options.platform or PLATFORM
    own = (f"{platform}.clock=virtual", *((f"{platform}.profile={args.profile}",) if args.profile else ()))
    return msgspec.structs.replace(
        options,
        load_format="dummy",
        platform=platform,
        platform_opt=(*options.platform_opt, *own),
        max_queued_requests=getattr(args, "max_queued_requests", 0),
    )


def _requests(args: argparse.Namespace, config: Config) -> list[TraceRequest]:
    given = {name: getattr(args, name) for name in _SYNTHETIC if hasattr(args, name)}
    if args.trace is None:
        return synthetic_trace(
            given.get("num_requests", 1000),
            rate=given.get("request_rate"),
            input_len=given.get("input_len", 512),
            output_len=given.get("output_len", 128),
            prefix_len=given.get("prefix_len", 0),
            max_model_len=config.scheduler.max_model_len,
            seed=config.options.seed,
        )
    if given:
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(f"--{name}", "it describes requests, which --trace does already; leave one of them out")
    return read_trace(args.trace)


def _simulate(
    args: argparse.Namespace, config: Config, chosen: ChosenPlatform, requests: list[TraceRequest]
) -> tuple[Figures, bool]:
    # By name: the engine needs torch in the end, which nothing else here does.
    module = importlib.import_module("core.simulate.simulation")
    simulation = module.Simulation(config, chosen, requests)
    with ExitStack() as bars:

        def progress(title: str) -> Callable[[int], None]:
            bars.close()
            bar = bars.enter_context(ProgressBar(title, total=len(requests), unit="requests"))
            return lambda tokens: bar.advance(1, tokens=tokens)

        if args.slo_ttft_ms is None and args.slo_tpot_ms is None:
            return simulation.run(1, progress("simulating")), True
        objective = module.Objective(_seconds(args.slo_ttft_ms), _seconds(args.slo_tpot_ms))
        replicas = simulation.devices_for(objective, progress)
        found = simulation.run(replicas or 1, progress("simulating"))
    return {"slo_ttft_ms": args.slo_ttft_ms, "slo_tpot_ms": args.slo_tpot_ms, "slo_met": bool(replicas), **found}, bool(
        replicas
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
