"""Writes the pages that are made from the source: docs/contract.md and docs/hooks/*.md. `make docs` runs it.

They are read off the code's text, so nothing of core is imported but the names of the hooks. A test holds them up to date.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core import hookspecs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTE = "<!-- Written by docs/generate.py from the source: change that, then `make docs`. -->\n"


# --- what the source does not say of a hook ------------------------------------------------------------------

_START = "the process that starts the engine (`core serve`'s first, or yours with `LLM`)"
_ENGINE = "the engine's process"
_FRONTEND = "each frontend's process"
_LISTED = "At every start-up, by `core plugins` and by `core plan`; once, for every installed plugin that `--plugins` lets in."
_REFUSED = (
    "Start-up stops with a PluginLoadError that names the distribution: where the hook raises or returns anything but names "
    "with `module:attribute`, where two plugins give one name, and where a target that is used cannot be imported."
)


@dataclass(frozen=True)
class Facts:
    """Who calls a hook and when, who uses what it names, what a failure does, and the files that show it."""

    caller: str
    when: str
    failure: str
    example: tuple[str, ...]
    used: str = ""  # where and when the target is called; the hooks of platforms have none
    types: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (module, names): the classes that the target meets


def _extension(used: str, example: Sequence[str], *types: tuple[str, tuple[str, ...]]) -> Facts:
    return Facts(_START, _LISTED, _REFUSED, tuple(example), used, types)


_MINIMAL = ("plugins/minimal-platform/core_minimal/plugin.py",)
_EXAMPLES = "docs/hooks/examples"

FACTS: dict[str, Facts] = {
    "plugin_info": Facts(
        f"{_START}, and again the engine's, for the chosen platform",
        "Whenever plugins are looked for: at every start-up, by `core platforms`, `core plugins` and `core plan`.",
        "The plugin is refused, its distribution named: PluginLoadError where it raises, returns something else or a name "
        "that is not the entry point's; ApiVersionError where `api` does not fit this core. A platform that is not asked "
        "for by name is then BROKEN.",
        _MINIMAL,
        types=(("core.platform", ("PluginInfo",)),),
    ),
    "probe": Facts(
        _START,
        "Before a platform is chosen: for the one that `--platform` names, else for all, side by side. Any number of times.",
        "An exception, no answer in time (`CORE_PROBE_TIMEOUT`) or another answer than a ProbeResult make the platform "
        "BROKEN. ConfigError stops the start-up.",
        _MINIMAL,
        types=(("core.platform", ("ProbeEnv", "ProbeResult", "DeviceInfo")),),
    ),
    "create_platform": Facts(
        f"{_ENGINE}; `core plan`'s own",
        "Once, for the platform that was chosen.",
        "Errors of core.errors pass as they are, others become PlatformBroken with their cause; PluginLoadError where it "
        "returns no Platform.",
        _MINIMAL,
        types=(("core.platform", ("PlatformContext", "Platform")),),
    ),
    "models": _extension(
        f"{_ENGINE}, once at its start; `core plan`'s own",
        ["plugins/model-example/core_model_example/plugin.py", "plugins/model-example/core_model_example/smollm3.py"],
        ("core.layers.base", ("Builder", "StepContext", "GroupInputs")),
    ),
    "quantization_schemes": _extension(
        f"{_ENGINE}, once when the weights are read",
        [f"{_EXAMPLES}/acme_int8/plugin.py", f"{_EXAMPLES}/acme_int8/scheme.py"],
        ("core.weights.base", ("WeightReader", "TensorMeta")),
    ),
    "kv_connectors": _extension(
        f"{_ENGINE}: twice at its start, for the scheduler's side and the worker's",
        [f"{_EXAMPLES}/acme_directory/plugin.py", f"{_EXAMPLES}/acme_directory/store.py"],
        ("core.cache.connector", ("ConnectorContext", "KVIndex", "KVConnector")),
    ),
    "tool_parsers": _extension(
        f"{_FRONTEND}, once for each choice of each request with tools",
        [f"{_EXAMPLES}/acme_parsers/plugin.py", f"{_EXAMPLES}/acme_parsers/calls.py"],
        (
            "core.server.parsers.base",
            ("ParserContext", "ToolParser", "ContentDelta", "ToolCallStart", "ArgumentsDelta"),
        ),
    ),
    "reasoning_parsers": _extension(
        f"{_FRONTEND}, once for each choice of each request",
        [f"{_EXAMPLES}/acme_parsers/plugin.py", f"{_EXAMPLES}/acme_parsers/thoughts.py"],
        ("core.server.parsers.base", ("ParserContext", "ReasoningParser", "ContentDelta", "ReasoningDelta")),
    ),
    "logits_processors": _extension(
        f"{_ENGINE}, once at its start; then its object for each token of each request that it applies to",
        [f"{_EXAMPLES}/acme_banned/plugin.py", f"{_EXAMPLES}/acme_banned/processor.py"],
        ("core.sampling.base", ("LogitsProcessor",)),
    ),
    "samplers": _extension(
        f"{_ENGINE}, once at its start; then its object in each step",
        [f"{_EXAMPLES}/acme_epsilon/plugin.py", f"{_EXAMPLES}/acme_epsilon/sampler.py"],
        ("core.sampling.base", ("Sampler",)),
        ("core.sampling.batch", ("SamplingBatch",)),
    ),
    "server_routes": _extension(
        f"{_FRONTEND}, once at its start",
        [f"{_EXAMPLES}/acme_shout/plugin.py", f"{_EXAMPLES}/acme_shout/routes.py"],
        ("core.server.extensions", ("RouteContext", "RouteGeneration", "TextDelta")),
    ),
    "metrics_sinks": _extension(
        f"{_FRONTEND}, once at its start; then its object for each token",
        [f"{_EXAMPLES}/acme_lines/plugin.py", f"{_EXAMPLES}/acme_lines/sink.py"],
        ("core.metrics.base", ("MetricsSink", "FinishedChoice")),
    ),
}


# --- the source as text --------------------------------------------------------------------------------------

_Definition = ast.ClassDef | ast.FunctionDef


class Source:
    """A module's definitions, fields and docstrings, in the order in which it has them."""

    def __init__(self, module: str) -> None:
        path = ROOT / f"{module.replace('.', '/')}.py"
        self.text = path.read_text(encoding="utf-8")
        self.lines = self.text.splitlines()
        self.tree = ast.parse(self.text)

    def public(self) -> list[_Definition]:
        """Classes and functions that are not private."""
        return [node for node in self.tree.body if isinstance(node, _Definition) and not node.name.startswith("_")]

    def find(self, name: str) -> _Definition:
        """The definition of that name."""
        (found,) = [node for node in self.public() if node.name == name]
        return found

    def describe(self, node: _Definition, level: int) -> Iterator[str]:
        """A definition as Markdown: heading, docstring, fields, methods."""
        yield f"{'#' * level} `{_signature(node)}`\n"
        yield _doc(node)
        if isinstance(node, ast.ClassDef):
            fields = [line for part in node.body for line in self._field(part)]
            if fields:
                yield f"```python\n{chr(10).join(fields)}\n```\n"
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    yield f"- **`{_signature(method)}`**{_kind(method)}\n"
                    yield textwrap.indent(_doc(method), "  ")

    def _field(self, part: ast.stmt) -> list[str]:
        """The lines of a field, with its comments."""
        if (
            not isinstance(part, ast.AnnAssign)
            or not isinstance(part.target, ast.Name)
            or part.target.id.startswith("_")
        ):
            return []
        first = part.lineno - 1
        while self.lines[first - 1].strip().startswith("#:"):
            first -= 1
        return textwrap.dedent("\n".join(self.lines[first : part.end_lineno])).splitlines()


def _signature(node: _Definition | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{prefix}{node.name}({ast.unparse(node.args)}){returns}"


def _kind(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if "abc.abstractmethod" in decorators or "abstractmethod" in decorators:
        return " (must be given)"
    return " (property)" if "property" in decorators else ""


def _doc(node: ast.AsyncFunctionDef | _Definition | ast.Module) -> str:
    return f"{ast.get_docstring(node) or ''}\n"


# --- the pages -----------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every generated page: where it lies, and its text."""
    made = {DOCS / "contract.md": _contract(), DOCS / "hooks" / "index.md": _index()}
    made.update({DOCS / "hooks" / f"{hook}.md": _hook(hook) for hook in hookspecs.HOOKS})
    return made


def _contract() -> str:
    source = Source("core.platform")
    parts = [NOTE, "# The contract: `core.platform`\n", _doc(source.tree), "*Must be given* marks what is abstract.\n"]
    for node in source.public():
        parts += source.describe(node, 2)
    return "\n".join(parts)


def _index() -> str:
    source = Source("core.hookspecs")
    rows = [f"| [`{hook}`]({hook}.md) | {_group(hook)} | {_summary(source.find(hook))} |" for hook in hookspecs.HOOKS]
    table = "\n".join(["| hook | group | what |", "|---|---|---|", *rows])
    parts = [NOTE, "# Hooks\n", _doc(source.tree), table + "\n", "## For a plugin's own options\n"]
    parts += source.describe(source.find("parse_own_options"), 3)
    return "\n".join(parts)


def _hook(hook: str) -> str:
    facts, source = FACTS[hook], Source("core.hookspecs")
    rows = {"group": _group(hook), "called in": facts.caller, "when": facts.when, "the target is called in": facts.used,
            "if it fails": facts.failure}  # fmt: skip
    parts = [NOTE, f"# `{hook}`\n", f"```python\ndef {_signature(source.find(hook))}\n```\n", _doc(source.find(hook))]
    parts.append(
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items() if text)]) + "\n"
    )
    parts.append("## Example\n")
    parts.append(_entry_point(hook, facts))
    for file in facts.example:
        parts.append(f'```python title="{_title(file)}"\n{(ROOT / file).read_text(encoding="utf-8")}```\n')
    parts.append("## What it meets\n" if facts.types else "")
    for module, names in facts.types:
        parts.append(f"From `{module}`:\n")
        for name in names:
            parts += Source(module).describe(Source(module).find(name), 3)
    return "\n".join(parts)


def _entry_point(hook: str, facts: Facts) -> str:
    package = Path(facts.example[0]).parent.name
    name = {"core_minimal": "minimal", "core_model_example": "smollm3"}.get(package, package)
    group = _group(hook) if hook != "plugin_info" else "`core.platforms`"
    return f'```toml title="pyproject.toml"\n[project.entry-points."{group.strip("`")}"]\n{name} = "{package}.plugin"\n```\n'


def _title(file: str) -> str:
    return "/".join(Path(file).parts[-2:])


def _group(hook: str) -> str:
    if hook == "plugin_info":
        return "`core.platforms` and `core.plugins`"
    return "`core.platforms`" if hook in hookspecs.PLATFORM_HOOKS else "`core.plugins`"


def _summary(node: _Definition) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")


def write() -> None:
    """Write the pages, and remove those of hooks that are gone."""
    made = pages()
    for stale in set((DOCS / "hooks").glob("*.md")) - set(made):
        stale.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
