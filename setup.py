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

sys.path.insert(0, str(Path(__file__).with_name("csrc")))  # a build front end does not put this folder there
import tiers

EXTRAS = ("cpu", "arm", "power", "cuda", "rocm", "xpu", "tpu", "neuron", "otel", "s3", "conformance", "dev")
TARGET_DEVICES = ("cpu", "none")


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


class BuildKernels(build_ext):
    """Compiles the kernel sources once per tier and links all of them into the one module."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        objects: list[str] = []
        for tier, flags in tiers.kernel_tiers(platform.machine()).items():
            objects += self.compiler.compile(
                tiers.KERNEL_SOURCES,
                output_dir=str(Path(self.build_temp) / tier),
                macros=[("CORE_ISA", tier)],
                extra_postargs=[*ext.extra_compile_args, *tiers.KERNEL_FLAGS, *flags],
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
            [*tiers.HOST_SOURCES, *tiers.BINDING_SOURCES],
            depends=[*tiers.headers(), *tiers.KERNEL_SOURCES],
            extra_compile_args=["-O3", *tiers.COMMON_FLAGS, *warnings_are_errors],
            libraries=["dl"],
        )
    ]


setup(
    install_requires=requirements("common"),
    extras_require={extra: requirements(extra) for extra in EXTRAS},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
)
