"""The rules of the house, held over the source itself: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "core").rglob("*.py"))
PLATFORMS = sorted((ROOT / "platforms").rglob("*.py"))

LINES = 400
#: Longer than a file should be, and why it stays one.
LONGER = {"core/platform.py": "the contract reads as a whole"}

#: What a part of core may not import. A prefix stands for the module and all below it.
FORBIDDEN = {
    "core": ("platforms", "plugins"),
    "core.types": ("torch", "numpy", "core.config", "core.envs"),
    "core.errors": ("torch", "numpy", "core"),
    "core.envs": ("torch", "numpy", "core.platform"),
    "core.clock": ("torch", "numpy", "core"),
    "core.extensions": ("torch", "numpy", "core.platform", "core.plugins"),
    "core.config": ("torch", "numpy", "core.platform", "core.plugins"),
    "core.logits": ("torch", "core.platform", "core.sampling", "core.runner"),
    "core.noise": ("torch", "core"),
    "core.platform": ("torch", "core.ops", "core.runner", "core.engine", "core.defaults"),
    "core.program": ("torch",),
    "core.hookspecs": ("torch",),
    "core.plugins": ("torch", "core.runner", "core.engine", "core.defaults"),
    "core.recording": ("core.platform", "core.runner", "core.engine", "core.weights"),
    "core.logs": ("torch",),
    "core.scheduler": ("torch", "numpy", "core.engine", "core.runner", "core.platform", "core.ops", "core.server"),
    "core.cache": ("torch", "numpy", "core.engine", "core.runner", "core.platform", "core.ops", "core.scheduler"),
    "core.transfer": ("torch", "numpy", "core.engine", "core.runner", "core.scheduler", "core.ops", "core.server"),
    "core.metrics": ("torch", "transformers"),
    "core.tokenization": ("torch",),
    "core.ops": ("core.platform", "core.layers", "core.models", "core.runner"),
    "core.layers": ("core.platform", "core.models", "core.runner", "core.engine", "core.weights"),
    "core.models": ("core.platform", "core.runner", "core.engine", "core.weights"),
    "core.runner": ("core.engine", "core.server", "core.scheduler", "core.cache", "core.distributed", "core.plugins"),
    "core.sampling": ("core.platform", "core.engine", "core.runner", "core.scheduler"),
    "core.structured": ("torch", "core.platform", "core.engine", "core.runner", "core.scheduler", "core.sampling"),
    "core.weights": ("core.engine", "core.runner", "core.scheduler", "core.cache", "core.server"),
    "core.defaults": ("core.runner", "core.engine", "core.layers", "core.models"),
    "core.distributed": ("torch", "core.runner", "core.engine", "core.models", "core.layers"),
    "core.conformance": ("core.runner", "core.scheduler", "core.cache", "core.server", "core.cli", "core.weights",
                         "core.layers", "core.sampling", "core.distributed", "core.engine"),
    "core.engine": ("torch", "core.runner", "core.layers", "core.models", "core.ops", "core.server", "core.cli"),
    "core.server": ("torch", "transformers", "core.engine.core", "core.engine.process", "core.scheduler", "core.cache",
                    "core.runner", "core.transfer", "core.platform", "core.ops", "core.cli"),
    "core.cli": ("torch", "transformers", "core.engine.core", "core.engine.process", "core.scheduler", "core.cache",
                 "core.runner", "core.ops"),
}  # fmt: skip

#: What a platform may use of core: the contract, and nothing that could change with the engine.
PLATFORMS_MAY_USE = {
    f"core.{name}"
    for name in (
        "platform",
        "program",
        "ops",
        "logits",
        "types",
        "config",
        "errors",
        "hookspecs",
        "distributed",
        "defaults",
        "logs",
        "clock",
        "recording",
    )
}

#: Imports within a function that break a rule above on purpose.
EXCEPTIONS = {
    ("core.engine.process", "core.server.app"): "the frontend's process starts here and becomes the server",
    ("core.tokenization.slow", "transformers"): "models without a fast tokenizer file; it is slow to import",
}

#: Vendors, their libraries and torch's names for their devices: data and plugins may say them, core's code does not.
VENDORS = re.compile(
    r"(?<![a-z])(cuda|nvidia|rocm|hip|amd|xpu|intel|tpu|xla|neuron|trainium|mps|metal|avx|amx)(?![a-z])", re.IGNORECASE
)
#: Where core may say one: the table of extras' variables, which names what the native CPU kernels read.
NAMES_VENDORS = {"core.envs"}


def module_name(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at any depth of its code: `from a import b` counts as `a` and as `a.b`."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides who is imported"
            assert node.module is not None
            yield node.module, node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def broken_rules(importer: str, imported: str) -> list[str]:
    if any(within(importer, who) and within(imported, what) for who, what in EXCEPTIONS):
        return []
    return [
        f"{part} must not import {prefix}"
        for part, prefixes in FORBIDDEN.items()
        if within(importer, part)
        for prefix in prefixes
        if within(imported, prefix) and not (prefix == "core" and within(imported, importer))
    ]


@pytest.mark.parametrize("file", CORE, ids=module_name)
def test_who_may_import_whom(file: Path) -> None:
    found = {
        f"line {line}: {imported}: {rule}"
        for imported, line in imports(file)
        for rule in broken_rules(module_name(file), imported)
    }
    assert not found


def test_the_rules_see_an_import_inside_a_function(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text("def f():\n    from core import runner\n    import torch.nn\n")
    seen = [imported for imported, _ in imports(source)]
    assert seen == ["core", "core.runner", "torch.nn"]
    assert broken_rules("core.engine.core", "core.runner")
    assert broken_rules("core.scheduler.queue", "torch.nn")
    assert broken_rules("core.server.app", "core.engine.core") and not broken_rules(
        "core.server.app", "core.engine.client"
    )


def test_every_rule_and_exception_is_about_something_that_exists() -> None:
    modules = [module_name(file) for file in CORE]
    for part in FORBIDDEN:
        assert any(within(module, part) for module in modules), part
    for who, what in EXCEPTIONS:
        assert any(within(what, name) for name, _ in imports(ROOT / f"{who.replace('.', '/')}.py")), (who, what)
    for name in LONGER:
        assert len((ROOT / name).read_text().splitlines()) > LINES, f"{name} needs no exception any more"


@pytest.mark.parametrize("file", PLATFORMS, ids=module_name)
def test_platforms_use_the_contract_only(file: Path) -> None:
    own = ".".join(module_name(file).split(".")[:2])
    for imported, line in imports(file):
        where = f"line {line}: {imported}"
        if within(imported, "core"):
            assert imported == "core" or any(within(imported, name) for name in PLATFORMS_MAY_USE), where
        if within(imported, "platforms") and imported != "platforms":
            assert within(imported, own) or within(imported, "platforms._shared"), f"{where}: another platform's"


@pytest.mark.parametrize("file", [file for file in PLATFORMS if file.name == "plugin.py"], ids=module_name)
def test_plugins_import_no_torch_at_their_top(file: Path) -> None:
    for imported, _ in imports(file):
        assert (
            not within(imported, "torch") and not within(imported, "core.defaults") and not within(imported, "core.ops")
        )


@pytest.mark.parametrize("text", ["is_cuda", "torch.cuda", "CUDA", "hip", "avx512", "xla:0"])
def test_the_vendors_are_recognised(text: str) -> None:
    assert VENDORS.search(text)
    assert not VENDORS.search("a ship with metallic amdahl neurons")


@pytest.mark.parametrize("file", CORE, ids=module_name)
def test_core_names_no_vendor(file: Path) -> None:
    """In code: docstrings and comments may explain what a platform is good for."""
    if module_name(file) in NAMES_VENDORS:
        return
    tree = parse(file)
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        texts = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            texts = [node.value]
        elif isinstance(node, ast.Name):
            texts = [node.id]
        elif isinstance(node, ast.Attribute):
            texts = [node.attr]
        for text in texts:
            assert not VENDORS.search(text), f"line {getattr(node, 'lineno', 0)}: {text!r}"


@pytest.mark.parametrize("file", [*CORE, *PLATFORMS], ids=module_name)
def test_no_file_is_too_long(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES or str(file.relative_to(ROOT)) in LONGER, f"{lines} lines: it wants a second noun"


# --- what an import brings with it ---------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """The top-level modules, and those of core, that a new interpreter has loaded after `statement`."""
    code = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_a_frontend_loads_neither_torch_nor_transformers() -> None:
    assert not loaded_by("import core.server.app") & {"torch", "transformers"}


def test_the_commands_load_no_torch() -> None:
    names = [file.stem for file in (ROOT / "core" / "cli").glob("*.py") if file.stem != "__init__"]
    assert not loaded_by(f"import {', '.join(f'core.cli.{name}' for name in names)}") & {"torch", "transformers"}


def test_the_supervisor_loads_no_torch() -> None:
    assert not loaded_by("import core.engine.supervisor") & {"torch", "transformers", "core.engine.core"}


def test_importing_core_loads_nothing_else() -> None:
    loaded = loaded_by("import core")
    assert {name for name in loaded if name.startswith("core")} == {"core"}
    assert not loaded & {"torch", "numpy", "msgspec", "transformers", "aiohttp"}
