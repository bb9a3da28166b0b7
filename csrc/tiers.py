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
    for name in ("attention", "kv_cache", "linear", "norm", "rope", "roofline", "silu_mul", "tier")
]
#: What calls them, and knows nothing of Python.
HOST_SOURCES = [f"csrc/cpu/{name}.cpp" for name in ("dispatch", "isa", "rows", "threads")]
#: What Python calls.
BINDING_SOURCES = [f"csrc/cpu/{name}.cpp" for name in ("bind_program", "bindings")]


def kernel_tiers(machine: str) -> dict[str, list[str]]:
    """Compiler flags of each tier that a kind of processor has, by `platform.machine()` (csrc/cpu/isa.cpp chooses)."""
    if machine in ("x86_64", "AMD64"):
        return {
            "scalar": ["-march=x86-64"],
            "avx2": ["-march=x86-64-v3"],
            "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
            "avx512bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16"],
        }
    return {"scalar": []}


def headers() -> list[str]:
    """What objects depend on, besides their own source."""
    return sorted(str(path.relative_to(CSRC.parent)) for path in CSRC.rglob("*.hpp"))
