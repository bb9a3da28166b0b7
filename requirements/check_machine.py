"""Says in one sentence what this machine lacks to build and run core, and exits with status 1; silent if nothing.

Run by the Makefile with the Python that the virtual environment is to be made of, before anything else, so it uses
nothing but the standard library and syntax that old Pythons can read.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig

OLDEST = (3, 11)


def missing() -> str | None:
    """The first thing that is missing, and how to get it."""
    version = "{}.{}".format(*sys.version_info[:2])
    if sys.version_info[:2] < OLDEST:
        return (
            f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed and {sys.executable} is {version}: "
            "install one and name it, like `make PYTHON=python3.12`."
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        return (
            f"Python {version} lacks its venv module: install it with `apt install python{version}-venv` (Debian, "
            "Ubuntu) or `dnf install python3-libs` (Fedora)."
        )
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return (
            f"Python {version} lacks its C headers: install them with `apt install python{version}-dev` (Debian, "
            "Ubuntu) or `dnf install python3-devel` (Fedora)."
        )
    compiler = shlex.split(os.environ.get("CXX") or "g++")[0]
    if shutil.which(compiler) is None:
        return (
            f"The C++ compiler {compiler} is not on PATH: install it with `apt install g++` (Debian, Ubuntu) or "
            "`dnf install gcc-c++` (Fedora)."
        )
    return None


if __name__ == "__main__":
    sys.exit(missing())
