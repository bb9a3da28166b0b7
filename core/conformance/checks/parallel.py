"""Level serve: one model on several devices, where that is claimed."""

from __future__ import annotations

from typing import Any

from core.conformance.checkpoints import prompts
from core.conformance.checks.engine import GREEDY, complaints, oracle_of
from core.conformance.failures import Broken, expect_none
from core.conformance.limits import Stage, within
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.errors import ConfigError, Unsupported

_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")


def _devices(size: str, count: int) -> dict[str, Any]:
    return {size: count}


@check("parallel.parity", "serve", "a model that is too large for one device must not answer otherwise on two")
def parity(subject: Subject) -> None:
    """On two devices, by tensors or by stages, greedy tokens are those of the float32 reference."""
    subject.require(subject.capabilities.max_parallel_size > 1, "capabilities().max_parallel_size above 1")
    served = 0
    for size in _SIZES:
        try:
            with subject.llm("llama", **_devices(size, 2)) as llm:
                outputs = llm.generate(prompts(4), GREEDY)
                expect_none(complaints(subject, oracle_of(subject, llm), outputs, f"{size} 2"))
        except Unsupported:
            continue  # one of the two ways is enough
        served += 1
    if not served:
        raise Broken("capabilities().max_parallel_size is above 1, and neither tensors nor stages can be split over 2")


@check("parallel.refused", "serve", "a size that is quietly ignored is half of the hardware left idle")
def refused(subject: Subject) -> None:
    """More devices than are claimed are refused at start, with Unsupported or ConfigError."""
    too_many = 2 * subject.capabilities.max_parallel_size
    for size in _SIZES:

        def start(stage: Stage, size: str = size) -> None:
            stage(f"--{size.replace('_', '-')} {too_many}")
            with subject.llm("llama", **_devices(size, too_many)):
                raise Broken(f"{size} {too_many} starts, {subject.capabilities.max_parallel_size} devices are declared")

        try:
            within(start)
        except (Unsupported, ConfigError):
            continue
