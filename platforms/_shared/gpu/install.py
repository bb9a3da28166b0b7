"""Which torch is installed, told from its files: importing it takes seconds, and a probe must leave no trace."""

from __future__ import annotations

import ast
import os
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


def torch_versions() -> Mapping[str, str] | None:
    """What torch/version.py assigns: `__version__`, and `cuda`, `hip` or `xpu` where it was built for that. None without
    torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return assigned(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))


def assigned(source: str) -> dict[str, str]:
    """The texts that a module assigns to names at its top."""
    found: dict[str, str] = {}
    for node in ast.parse(source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.update({target.id: value.value for target in targets if isinstance(target, ast.Name)})
    return found


def missing(versions: Mapping[str, str] | None, vendor: str, extra: str, index: str) -> str:
    """Why this install cannot drive `vendor` (a name that torch/version.py assigns), or nothing.

    `index` is where pip finds the torch that can, as an option of it; empty for PyPI.
    """
    install = f"pip install --force-reinstall {index + ' ' if index else ''}torch, then pip install 'core[{extra}]'"
    if versions is None:
        return f"torch is not installed: {install}"
    if vendor not in versions:
        built = next((name for name in ("cuda", "hip", "xpu") if name in versions), "the CPU alone")
        return f"torch {versions.get('__version__', '')} was built for {built}, not for {vendor}: {install}"
    if find_spec("triton") is None:
        return f"triton is not installed, and the kernels are written in it: {install}"
    return _no_compiler()


def _no_compiler() -> str:
    """Triton compiles what launches a kernel as it is first called (triton/runtime/build.py): with a C compiler, `CC` or one
    on PATH, and Python's headers."""
    if os.environ.get("CC") is None and not any(map(shutil.which, ("gcc", "clang"))):
        return "triton needs a C compiler to launch kernels, and there is none: install gcc, or name one in CC"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "triton needs Python's headers to launch kernels: install python3-dev, or what your system calls it"
    return ""
