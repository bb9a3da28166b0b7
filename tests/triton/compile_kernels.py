"""Compile the GPU kernels for every target, with no GPU, and hold what the machine code takes against the target.

Registers, spills and shared memory come from the machine code: `cuobjdump --dump-resource-usage` of a cubin, the metadata
of amdgcn's text. A kernel of the decode path that spills, or any that wants more shared memory than a program can have,
fails.

    python tests/triton/compile_kernels.py [--all] [--target sm_90 …] [--jobs N] [--verbose]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from variants import Variant, variants

#: What CI compiles at most; `--all` has no limit.
MOST = 600


@dataclass(frozen=True)
class Target:
    """What Triton calls it, and what one program may take: bytes of shared memory (LDS), vector registers a thread."""

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int
    registers: int


#: Shared memory: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; the LDS and
#: registers of AMD's CDNA 2, CDNA 3 and RDNA 3 instruction set documents (CDNA's count includes accumulation registers).
TARGETS = (
    Target("sm_80", "cuda", 80, 32, 163 << 10, 255),
    Target("sm_89", "cuda", 89, 32, 99 << 10, 255),
    Target("sm_90", "cuda", 90, 32, 227 << 10, 255),
    Target("sm_100", "cuda", 100, 32, 227 << 10, 255),
    Target("gfx90a", "hip", "gfx90a", 64, 64 << 10, 512),
    Target("gfx942", "hip", "gfx942", 64, 64 << 10, 512),
    Target("gfx1100", "hip", "gfx1100", 32, 64 << 10, 256),
)


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes: registers and bytes of stack (spilled registers) a thread, bytes of shared memory."""

    registers: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Outcome:
    """A compiled variant, or the error it met."""

    target: Target
    variant: Variant
    usage: Usage | None
    problem: str


def compiled(target: Target, variant: Variant) -> Outcome:
    """Compile one variant and judge it."""
    try:
        usage = _usage(target, _compile(target, variant))
    except Exception as error:  # whatever a compiler raises is the finding
        return Outcome(target, variant, None, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
    return Outcome(target, variant, usage, _problem(target, variant, usage))


def _compile(target: Target, variant: Variant) -> Any:
    triton = import_module("triton")
    module, name = variant.kernel.split(".")
    kernel = getattr(import_module(f"platforms._shared.triton.kernels.{module}"), name)
    names = list(kernel.arg_names)
    signature = {each: variant.arguments.get(each, "constexpr") for each in names}
    # At run time addresses are multiples of 16, and so are strides of any model that is worth its memory.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, each in enumerate(names)
        if signature[each].startswith("*") or each.endswith("_stride")
    }
    source = import_module("triton.compiler").ASTSource(
        fn=kernel, signature=signature, constexprs=variant.constants, attrs=aligned
    )
    gpu = import_module("triton.backends.compiler").GPUTarget(target.backend, target.arch, target.warp)
    return triton.compile(source, target=gpu, options=variant.options)


def _usage(target: Target, kernel: Any) -> Usage:
    if target.backend == "cuda":
        return _of_cubin(kernel)
    text = kernel.asm["amdgcn"]

    def field(name: str) -> int:
        (value,) = re.findall(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
        return int(value)

    shared = max(field("group_segment_fixed_size"), kernel.metadata.shared)
    return Usage(field("vgpr_count"), 4 * field("vgpr_spill_count"), shared)


def _of_cubin(kernel: Any) -> Usage:
    tool = Path(import_module("triton").__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    # Triton's shared memory is given at launch, so it is in the metadata, not in the cubin.
    return Usage(found["REG"], found["STACK"] + found["LOCAL"], found["SHARED"] + kernel.metadata.shared)


def _problem(target: Target, variant: Variant, usage: Usage) -> str:
    if usage.shared > target.shared:
        return f"{usage.shared} bytes of shared memory, {target.shared} there are"
    if usage.registers > target.registers:
        return f"{usage.registers} registers, {target.registers} there are"
    if variant.decode and usage.stack:
        return f"{usage.stack} bytes of registers a thread are spilled in a kernel of the decode path"
    return ""


# --- running and printing ------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help=f"the whole matrix, not the {MOST} that CI compiles")
    parser.add_argument("--target", action="append", choices=[t.name for t in TARGETS], help="repeatable; default: all")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--verbose", action="store_true", help="a row for every kernel as it was compiled")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    work = [
        (target, variant)
        for target in TARGETS
        if not args.target or target.name in args.target
        for variant in variants(target.name, whole=args.all)
    ]
    if not args.all and len(work) > MOST:
        sys.exit(
            f"{len(work)} kernels are more than the {MOST} that this shall compile: shorten tests/triton/variants.py"
        )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # of this run: what an earlier Triton made proves nothing
        outcomes = list(_in_parallel(work, args.jobs))
    _print(outcomes, verbose=args.verbose)
    failed = [each for each in outcomes if each.problem]
    print(f"\n{len(outcomes)} kernels in {time.monotonic() - started:.0f} s, {len(failed)} failed")
    for each in failed:
        print(f"FAILED {each.target.name} {each.variant.label}: {each.problem}")
    return 1 if failed else 0


def _in_parallel(work: list[tuple[Target, Variant]], jobs: int) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(compiled, *zip(*work, strict=True), chunksize=4)


def _print(outcomes: list[Outcome], *, verbose: bool) -> None:
    """A row for each kernel and target: the most that any of its variants takes."""
    print(f"{'target':8} {'kernel':44} {'variants':>8} {'registers':>9} {'stack':>8} {'shared':>8}")
    rows: dict[tuple[str, str], list[Usage]] = {}
    for each in outcomes:
        if each.usage is not None:
            label = each.variant.label if verbose else each.variant.kernel
            rows.setdefault((each.target.name, label), []).append(each.usage)
    for (target, label), usages in rows.items():
        most = [max(getattr(usage, name) for usage in usages) for name in ("registers", "stack", "shared")]
        print(f"{target:8} {label:44} {len(usages):8} {most[0]:9} {most[1]:8} {most[2]:8}")


if __name__ == "__main__":
    sys.exit(main())
