"""What csrc/ is compiled from, with which flags, for which instruction-set tiers. For setup.py and csrc/cpu/tests/run.py."""

from __future__ import annotations

from pathlib import Path

CSRC = Path(__file__).parent

COMMON_FLAGS = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Contraction to fused multiply-adds is asked for by name, since -std=c++17 turns it off. The other two let a comparison
# be vectorised; neither changes a result. -Wno-psabi: vectors wider than the baseline's are never passed between tiers.
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]

#: Compiled once for each tier.
KERNEL_SOURCES = [
    f"csrc/cpu/kernels/{name}.cpp"
    for name in (
        "attention",
        "choose",
        "encoder",
        "kv_cache",
        "linear",
        "linear_quantized",
        "norm",
        "rope",
        "roofline",
        "silu_mul",
        "tier",
    )
]
#: What calls them, and knows nothing of Python.
HOST_SOURCES = [
    f"csrc/cpu/{name}.cpp"
    for name in ("choose", "dispatch", "encoder", "isa", "quantized", "rows", "schemes", "threads")
]
#: What Python calls.
BINDING_SOURCES = [f"csrc/cpu/{name}.cpp" for name in ("bind_choose", "bind_program", "bind_quantized", "bindings")]


#: The compiler's flags of each tier, by what `platform.machine()` calls a kind of processor. A tier is used where
#: csrc/cpu/isa.cpp finds its instructions. CORE_PORTABLE leaves out what csrc/cpu/vec has by an instruction's name.
TIERS = {
    "x86_64": {
        "scalar": ["-march=x86-64"],
        "avx2": ["-march=x86-64-v3"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "avx512bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16", "-mavx512vnni"],
    },
    "aarch64": {
        "scalar": ["-march=armv8-a", "-DCORE_PORTABLE"],
        "neon": ["-march=armv8-a"],
        "neon_dotprod": ["-march=armv8.2-a+dotprod"],
        "neon_bf16": ["-march=armv8.2-a+dotprod+i8mm+bf16"],
    },
    "ppc64le": {
        "scalar": ["-mcpu=power8", "-DCORE_PORTABLE"],
        "vsx": ["-mcpu=power8", "-mtune=power9"],
    },
}


def kernel_tiers(machine: str) -> dict[str, list[str]]:
    """The tiers of a kind of processor and their flags; of one that is not known, the scalar tier of its baseline."""
    return TIERS.get(machine, {"scalar": []})


def headers() -> list[str]:
    """What objects depend on, besides their own source."""
    return sorted(str(path.relative_to(CSRC.parent)) for path in CSRC.rglob("*.hpp"))
