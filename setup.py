"""What pyproject.toml cannot say: dependencies read from requirements/*.txt, and the build of csrc/.

CORE_TARGET_DEVICE chooses the native modules: `cpu` (default on Linux) builds `platforms._shared._native`, `none` builds
nothing. CORE_CXX_WERROR=1 makes compiler warnings errors, for people who change csrc/. Torch is not needed to build.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

EXTRAS = ("cpu", "cuda", "rocm", "xpu", "tpu", "neuron", "conformance", "dev")
TARGET_DEVICES = ("cpu", "none")

COMMON_FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Contraction to fused multiply-adds is asked for by name, since -std=c++17 turns it off. The other two let a comparison
# be vectorised; neither changes a result. -Wno-psabi: vectors wider than the baseline's are never passed between tiers.
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
KERNEL_SOURCES = [
    f"csrc/cpu/kernels/{name}.cpp"
    for name in ("attention", "kv_cache", "linear", "norm", "rope", "roofline", "silu_mul", "tier")
]
MODULE_SOURCES = [f"csrc/cpu/{name}.cpp" for name in ("bind_program", "bindings", "dispatch", "isa", "rows", "threads")]


def requirements(name: str) -> list[str]:
    """The requirement lines of requirements/NAME.txt."""
    lines = Path(__file__).with_name("requirements").joinpath(f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def target_device() -> str:
    """CORE_TARGET_DEVICE, checked."""
    device = os.environ.get("CORE_TARGET_DEVICE", "cpu" if sys.platform == "linux" else "none")
    if device not in TARGET_DEVICES:
        sys.exit(f"CORE_TARGET_DEVICE: {device!r} is not one of {', '.join(TARGET_DEVICES)}")
    return device


def kernel_tiers() -> dict[str, list[str]]:
    """Compiler flags of each instruction-set tier that this machine's kind of processor has (csrc/cpu/isa.hpp)."""
    if platform.machine() in ("x86_64", "AMD64"):
        return {
            "scalar": ["-march=x86-64"],
            "avx2": ["-march=x86-64-v3"],
            "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
            "avx512bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16"],
        }
    return {"scalar": []}


class BuildKernels(build_ext):
    """Compiles the kernel sources once per tier and links all of them into the one module."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        objects: list[str] = []
        for tier, flags in kernel_tiers().items():
            objects += self.compiler.compile(
                KERNEL_SOURCES,
                output_dir=str(Path(self.build_temp) / tier),
                macros=[("CORE_ISA", tier)],
                extra_postargs=[*ext.extra_compile_args, *KERNEL_FLAGS, *flags],
                depends=ext.depends,
            )
        ext.extra_objects = objects
        super().build_extension(ext)


def extensions() -> list[Pybind11Extension]:
    """The native modules of the target device."""
    if target_device() == "none":
        return []
    warnings_are_errors = ["-Werror"] if os.environ.get("CORE_CXX_WERROR") == "1" else []
    return [
        Pybind11Extension(
            "platforms._shared._native",
            MODULE_SOURCES,
            depends=sorted(str(path) for path in Path("csrc").rglob("*.[ch]pp")),
            extra_compile_args=[*COMMON_FLAGS, *warnings_are_errors],
            libraries=["dl"],
        )
    ]


setup(
    install_requires=requirements("common"),
    extras_require={extra: requirements(extra) for extra in EXTRAS},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
)
