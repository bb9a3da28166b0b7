"""The contract's signatures as text, and what a change of them asks of the contract's version.

    python tests/support/api_lock.py        write tests/api.lock, if the version has been raised as far as it must be

A line is a name and what others may rely on: a function's signature, a class's bases, a field's type and default, a
method's signature and whether it is abstract. Lines are read from the source, so nothing is imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "tests" / "api.lock"

#: What plugins may import (tests/test_architecture.py), less what they only pass on.
PUBLIC = (
    "core.cache.connector",
    "core.clock",
    "core.config",
    "core.defaults",
    "core.errors",
    "core.hookspecs",
    "core.layers.attention",
    "core.layers.base",
    "core.layers.embedding",
    "core.layers.linear",
    "core.layers.norm",
    "core.layers.rope",
    "core.logits",
    "core.metrics.base",
    "core.models.blocks",
    "core.ops",
    "core.platform",
    "core.program",
    "core.recording",
    "core.sampling.base",
    "core.sampling.batch",
    "core.server.extensions",
    "core.server.parsers.base",
    "core.types",
    "core.weights.base",
)

#: What may gain members without a new version: a user's flags, which a plugin may read and need not know.
GROWS_FREELY = ("core.config.Options.",)

#: What an option says of itself: text, which may change.
_DESCRIPTION = re.compile(r"""(?<=description=)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
_LITERAL = re.compile(r"Literal\[(?P<members>[^\]]*)\]")

Version = tuple[int, int]
Lines = dict[str, str]  # name -> what is promised of it


# --- reading -------------------------------------------------------------------------------------------------


def current() -> tuple[Version, Lines]:
    """The contract as it stands in the source."""
    lines: Lines = {}
    for module in PUBLIC:
        lines.update(describe(module, _source(module)))
    return _version(_source("core.platform")), lines


def _source(module: str) -> str:
    return (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")


def _version(source: str) -> Version:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "API_VERSION":
            major, minor = ast.literal_eval(node.value)
            return major, minor
    raise ValueError("core/platform.py has no API_VERSION")


def describe(module: str, source: str) -> Lines:
    """The public names that `source` defines."""
    return dict(_described(module, ast.parse(source).body))


def _described(owner: str, body: Iterable[ast.stmt]) -> Iterator[tuple[str, str]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            yield f"{owner}.{node.name}", _function(node)
        elif isinstance(node, ast.ClassDef) and _is_public(node.name):
            name = f"{owner}.{node.name}"
            arguments = [*map(ast.unparse, node.bases), *(f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords)]
            yield name, f"class({', '.join(arguments)}){_decorators(node)}"
            yield from _described(name, node.body)
        elif isinstance(node, ast.AnnAssign) and _is_public(ast.unparse(node.target)):
            default = "" if node.value is None else f" = {ast.unparse(node.value)}"
            yield f"{owner}.{ast.unparse(node.target)}", f"{ast.unparse(node.annotation)}{default}"
        elif (
            isinstance(node, ast.Assign) and _is_public(name := ast.unparse(node.targets[0])) and name != "API_VERSION"
        ):
            yield f"{owner}.{name}", f"= {ast.unparse(node.value)}"


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{kind}({ast.unparse(node.args)}){returns}{_decorators(node)}"


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    kept = [ast.unparse(decorator) for decorator in node.decorator_list]
    return "".join(f" @{decorator}" for decorator in kept)


# --- comparing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What became of the contract: lines that break a plugin, and lines that only add to what it may use."""

    breaking: tuple[str, ...]
    adding: tuple[str, ...]

    def least(self, version: Version) -> Version:
        """The lowest version that may carry this change, from `version` on."""
        if self.breaking:
            return version[0] + 1, 0
        return (version[0], version[1] + 1) if self.adding else version


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> Change:
    """A name that goes or changes breaks plugins; so does one that every plugin would have to give from now on.

    A tuple of constants that has more of them at its end only adds: what a plugin took from it is still there. So does an
    option that may have more values.
    """
    old, new = ({name: _DESCRIPTION.sub("''", line) for name, line in lines.items()} for lines in (old, new))
    breaking = [f"- {name} {old[name]}" for name in sorted(old.keys() - new.keys())]
    adding = []
    for name in sorted(old.keys() & new.keys()):
        if new[name] != old[name]:
            grown = _grows_at_the_end(old[name], new[name]) or _takes_more(old[name], new[name])
            (adding if grown else breaking).append(f"~ {name} {old[name]}\n  now {new[name]}")
    for name in sorted(new.keys() - old.keys()):
        line = f"+ {name} {new[name]}"
        if not name.startswith(GROWS_FREELY):
            (breaking if _must_be_given(name, new[name], old) else adding).append(line)
    return Change(tuple(breaking), tuple(adding))


def _grows_at_the_end(old: str, new: str) -> bool:
    if not (old.startswith("= (") and new.startswith("= (")):
        return False
    try:
        before, after = (ast.literal_eval(line.removeprefix("= ")) for line in (old, new))
    except ValueError:  # not of constants
        return False
    return isinstance(before, tuple) and isinstance(after, tuple) and after[: len(before)] == before


def _takes_more(old: str, new: str) -> bool:
    """Whether all that changed is a `Literal` that has more members."""
    before, after = _LITERAL.search(old), _LITERAL.search(new)
    if before is None or after is None or _LITERAL.sub("", old, count=1) != _LITERAL.sub("", new, count=1):
        return False
    return set(before["members"].split(", ")) < set(after["members"].split(", "))


def _must_be_given(name: str, promise: str, old: Mapping[str, str]) -> bool:
    """An abstract method, or a field without a default, of a class that was there before."""
    owner = name.rpartition(".")[0]
    if not old.get(owner, "").startswith("class("):
        return False
    is_method, is_constant = promise.startswith(("(", "async (")), promise.startswith("= ")
    return (
        "@abc.abstractmethod" in promise or "@abstractmethod" in promise
        if is_method
        else (not is_constant and " = " not in promise)
    )


# --- the lock ------------------------------------------------------------------------------------------------


def read(text: str) -> tuple[Version, Lines]:
    """The version and the lines of a lock."""
    head, *lines = text.splitlines()
    major, minor = head.removeprefix("contract ").split(".")
    return (int(major), int(minor)), dict(line.split(" ", 1) for line in lines)


def write(version: Version, lines: Mapping[str, str]) -> str:
    """The text of a lock."""
    return f"contract {version[0]}.{version[1]}\n" + "".join(f"{name} {lines[name]}\n" for name in sorted(lines))


def problem(locked: tuple[Version, Lines], now: tuple[Version, Lines]) -> str:
    """Why the contract may not be as it is now, or nothing."""
    change = compare(locked[1], now[1])
    least = change.least(locked[0])
    if now[0] >= least:
        return ""
    what = "\n".join([*change.breaking, *change.adding])
    kind = "breaks plugins" if change.breaking else "adds to what plugins may use"
    return f"the contract has changed in a way that {kind}: set API_VERSION = {least} in core/platform.py\n{what}"


def main() -> int:
    """Write the lock. Returns 1 where the version has to be raised first."""
    now = current()
    if LOCK.exists() and (reason := problem(read(LOCK.read_text(encoding="utf-8")), now)):
        print(reason, file=sys.stderr)
        return 1
    LOCK.write_text(write(*now), encoding="utf-8")
    print(f"{LOCK.relative_to(ROOT)}: contract {now[0][0]}.{now[0][1]}, {len(now[1])} signatures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
