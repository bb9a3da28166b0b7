"""TPUs as a platform, and XLA's CPU device in their place."""

from __future__ import annotations

import re
from pathlib import Path

from core.errors import ConfigError, PlatformBroken
from core.platform import Bucket, DeviceInfo
from platforms._shared import host
from platforms._shared.xla.platform import XlaPlatform
from platforms.tpu import chips
from platforms.tpu.plugin import NAME, TpuOptions


def create(options: TpuOptions) -> XlaPlatform:
    """Makes the process's one XLA client. Raises PlatformBroken, ConfigError."""
    cache = Path(options.cache_dir).expanduser() if options.cache_dir else None
    try:
        return XlaPlatform(NAME, _device(options), parse_buckets(options), cache)
    except RuntimeError as error:
        busy = chips.holder(Path("/"))
        why = f"process {busy} has it open; a chip serves one process" if busy is not None else str(error)
        raise PlatformBroken(f"{NAME}: no XLA client for this device could be made: {why}") from error


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


def _device(options: TpuOptions) -> DeviceInfo:
    if options.device == "cpu":
        return host.device_info()
    return DeviceInfo(index=0, name=chips.on_pci(Path("/"))[0])
