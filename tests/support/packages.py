"""Wheels built from the tree, and clean environments to install them into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache", ".hypothesis"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed, outside of this environment."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**inherited, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(source: Path, folder: Path) -> Path:
    """A copy of `source` in `folder`, with what `python -m build` makes of it in its `dist`: an sdist, a wheel of that."""
    tree = folder / "tree"
    shutil.copytree(source, tree, ignore=_NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=tree)
    return tree


def wheel(tree: Path) -> Path:
    """The wheel in a built tree."""
    (found,) = (tree / "dist").glob("*.whl")
    return found


class CleanEnvironment:
    """A virtual environment with nothing in it. The dependencies are this environment's, named in a .pth file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "env"
        run(sys.executable, "-m", "venv", "--without-pip", self.folder, cwd=folder)
        self.python = self.folder / "bin" / "python"
        self.core = self.folder / "bin" / "core"
        paths = run(self.python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=folder)
        self.packages = Path(paths.strip())
        (self.packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def install(self, package: Path) -> None:
        """Install a wheel, without its dependencies."""
        self._pip("install", "--no-deps", "--no-index", package)

    def uninstall(self, distribution: str) -> None:
        """Remove a distribution."""
        self._pip("uninstall", "--yes", distribution)

    def files(self) -> set[Path]:
        """Everything that is installed, but for what Python compiles."""
        return {path for path in self.folder.rglob("*") if "__pycache__" not in path.parts}

    def _pip(self, command: str, *arguments: str | Path) -> None:
        run(sys.executable, "-m", "pip", "--python", self.python, command, *arguments, cwd=self.folder)
