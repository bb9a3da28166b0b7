"""Tutorials are executed as a reader would follow them: files written, diffs applied, commands run, output compared.

A fenced block is a file (```` ```python title="a/b.py" ````), a change of one (```` ```diff title="a/b.py" ````) or a
terminal (```` ```console ````), in which `$ ` begins a command, `> ` goes on with it, and the rest is what it prints.
There `…` stands for any text, alone on a line for any lines. A command that ends with `&` runs until the tutorial ends.
A command whose output has a line that begins with `error:` fails; every other one succeeds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL
)
_SECONDS = 900.0


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order; those without a language are for the eye only."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["title"], found["text"], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


@dataclass(frozen=True)
class Command:
    """What follows a `$ `, and what the page says that it prints."""

    text: str
    output: str

    @property
    def fails(self) -> bool:
        """Whether the page shows an error."""
        return any(line.startswith("error:") for line in self.output.splitlines())


def commands(text: str) -> list[Command]:
    """The commands of a terminal."""
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            found[-1][1].append(line)
    return [Command("\n".join(words), "\n".join(output)) for words, output in found]


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what the page shows, blanks at the ends of lines aside."""
    pattern = ""
    for line in shown.strip().splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"
    return re.fullmatch(pattern, printed.strip() + "\n" if printed.strip() else "") is not None


def apply_diff(diff: str, old: str) -> str:
    """`old` with each run of ` ` and `-` lines replaced by its ` ` and `+` lines; a blank line ends a run."""
    for run in filter(None, re.split(r"^\n", diff, flags=re.MULTILINE)):
        lines = run.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        if old.count(before) != 1:
            raise AssertionError(f"these lines are {old.count(before)} times in the file:\n{before}")
        old = old.replace(before, after)
    return old


@dataclass
class Reader:
    """Follows a page in `directory`, with the programs of `environment`. `replace` changes what a machine may not share
    with others, such as a port, in the commands."""

    directory: Path
    environment: Mapping[str, str]
    replace: Mapping[str, str] = field(default_factory=dict)
    _background: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._background.close()

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        if block.language == "console":
            for command in commands(block.text):
                self._run(command, block.line)
        elif block.title is not None:
            file = self.directory / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            text = apply_diff(block.text, file.read_text()) if block.language == "diff" else block.text
            file.write_text(text)

    def _run(self, command: Command, line: int) -> None:
        text = command.text
        for old, new in self.replace.items():
            text = text.replace(old, new)
        if text.endswith("&"):
            self._background.enter_context(self._running(text.removesuffix("&")))
            return
        ran = subprocess.run(
            ["bash", "-c", text], cwd=self.directory, env=self.environment, check=False, timeout=_SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        where = f"the block at line {line}: {command.text}"
        assert (ran.returncode != 0) is command.fails, f"{where} ended with {ran.returncode}:\n{ran.stdout}"
        assert matches(command.output, ran.stdout), (
            f"{where} printed\n{ran.stdout}where the page shows\n{command.output}"
        )

    @contextmanager
    def _running(self, text: str) -> Iterator[None]:
        log = self.directory.with_suffix(".log")
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {text}"], cwd=self.directory, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(60)
            finally:
                process.kill()
        assert status == 0, log.read_text()


def environment(directory: Path) -> dict[str, str]:
    """Variables of a new virtual environment in `directory`, in which this one's packages can be imported.

    Its `pip install` asks no index: it builds with what is here.
    """
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    (packages,) = directory.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    scripts = {
        "core": f"#!{python}\nimport sys\nfrom core.cli.main import main\nsys.exit(main())\n",
        "pip": "#!/bin/sh\naction=$1; shift\n"
        'case $action in install|wheel) set -- --no-index --no-build-isolation --no-deps "$@";; esac\n'
        f'exec {python} -m pip --disable-pip-version-check $action "$@"\n',
    }
    for name, script in scripts.items():
        (directory / "bin" / name).write_text(script)
        (directory / "bin" / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH"))}
    path = os.pathsep.join([str(python.parent), str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, "PATH": path, "VIRTUAL_ENV": str(directory), "COLUMNS": "120", "NO_COLOR": "1"}
