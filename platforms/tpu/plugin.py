"""The TPU platform's plugin. Imports neither torch nor torch_xla: it runs in the process that chooses a platform."""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from core.errors import ConfigError
from core.hookspecs import hookimpl, parse_own_options
from core.platform import Bucket, DeviceInfo, Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult
from platforms._shared import host
from platforms.tpu import chips

NAME = "tpu"

_SCORE = 100


class TpuOptions(msgspec.Struct, frozen=True):
    """`--platform-opt tpu.KEY=VALUE`."""

    device: Annotated[
        Literal["tpu", "cpu"], Meta(description="cpu: XLA's own CPU device, to try the same programs without a TPU")
    ] = "tpu"
    buckets: Annotated[
        str, Meta(description="tokens x sequences of the step shapes that are compiled, separated by spaces")
    ] = "8x8 32x32 128x8 512x32"
    contexts: Annotated[
        str, Meta(description="KV positions that each of them is compiled for, separated by spaces")
    ] = "512 2048 8192"
    cache_dir: Annotated[
        str, Meta(description="where compiled programs are kept from one start to the next; empty: nowhere")
    ] = ""


@hookimpl
def plugin_info() -> PluginInfo:
    """The contract this was written for."""
    return PluginInfo(name=NAME, vendor="core", version="0.1.0", api=(1, 2), options=TpuOptions)


@hookimpl
def probe(env: ProbeEnv) -> ProbeResult:
    """AVAILABLE with a TPU, or XLA's CPU device asked for, and what drives it; ABSENT with what is missing."""
    options = parse_own_options(NAME, env.options, TpuOptions)
    found = chips.on_pci(Path("/"))
    if options.device == "tpu" and not found:
        return ProbeResult(state="ABSENT", reason="there is no TPU on this machine's PCI bus")
    if find_spec("torch_xla") is None:
        return ProbeResult(state="ABSENT", reason="torch_xla is not installed: pip install 'core[tpu]'")
    if options.device == "cpu":
        return ProbeResult(state="AVAILABLE", reason="XLA's CPU device, asked for", devices=(host.device_info(),))
    if find_spec("libtpu") is None:
        return ProbeResult(
            state="ABSENT", reason=f"{found[0]} is here, its runtime is not: pip install 'core[tpu]' libtpu"
        )
    devices = tuple(DeviceInfo(index=index, name=name) for index, name in enumerate(found))
    return ProbeResult(state="AVAILABLE", reason=f"{len(found)} x {found[0]}", devices=devices, score=_SCORE)


@hookimpl
def create_platform(ctx: PlatformContext) -> Platform:
    """The platform; torch_xla is imported and its client made here."""
    options = parse_own_options(NAME, ctx.options, TpuOptions)
    os.environ["PJRT_DEVICE"] = options.device.upper()  # torch_xla reads it as it makes its client
    created: Platform = import_module("platforms.tpu.platform").create(options)
    return created


def parse_buckets(options: TpuOptions) -> tuple[Bucket, ...]:
    """Every token and sequence count with every context. Raises ConfigError."""
    shapes = [re.fullmatch(r"(\d+)x(\d+)", each) for each in options.buckets.split()]
    contexts = options.contexts.split()
    if not shapes or not all(shapes):
        raise ConfigError(
            f"--platform-opt {NAME}.buckets", f"{options.buckets!r} is not like '8x8 128x8': tokens x sequences"
        )
    if not contexts or not all(each.isdecimal() and int(each) for each in contexts):
        raise ConfigError(f"--platform-opt {NAME}.contexts", f"{options.contexts!r} is not like '512 2048'")
    pairs = [(int(match[1]), int(match[2])) for match in shapes if match]
    largest = max(tokens for tokens, _ in pairs), max(seqs for _, seqs in pairs)
    wrong = [f"{tokens}x{seqs}" for tokens, seqs in pairs if not tokens >= seqs >= 1]
    if wrong or largest not in pairs:
        why = f"{wrong[0]} holds no step of one token a sequence" if wrong else f"one must be {largest[0]}x{largest[1]}"
        raise ConfigError(f"--platform-opt {NAME}.buckets", why)
    return tuple(sorted({Bucket(*pair, int(context)) for pair in pairs for context in contexts}))
