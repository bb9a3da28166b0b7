"""The generated pages are what the source says, one for each hook, and the examples in them do what they say."""

from __future__ import annotations

import ast
import datetime
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import distributions
import numpy as np
import pytest
from aiohttp import web
from safetensors.numpy import load_file, save_file

from core import LLM, SamplingParams, plugins
from core.config import parse_options
from core.conformance.report import SCHEMA
from core.hookspecs import EXTENSION_HOOKS, HOOKS
from core.metrics import FinishedChoice
from core.server.parsers import ParserContext
from core.server.parsers.base import ArgumentsDelta, ContentDelta, ReasoningDelta, ToolCallStart

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "hooks" / "examples"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPT = list(range(20, 60))


def script(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def generate() -> ModuleType:
    return script("generate")


def test_the_pages_are_up_to_date(generate: ModuleType) -> None:
    pages = generate.pages()
    stale = [str(path) for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    assert stale == [], "run `make docs`"
    assert set((DOCS / "hooks").glob("*.md")) <= set(pages), "pages of hooks that are gone: run `make docs`"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_whole_page(generate: ModuleType, hook: str) -> None:
    page = (DOCS / "hooks" / f"{hook}.md").read_text()
    facts = generate.FACTS[hook]
    assert f"def {hook}(" in page and facts.caller in page and facts.when in page and facts.failure in page
    implemented = [
        node.name
        for file in facts.example
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "hookimpl" for d in node.decorator_list)
    ]
    assert hook in implemented and "plugin_info" in implemented
    assert (
        f"[{hook}]({hook}.md)".replace("[", "[`", 1).replace("]", "`]", 1) in (DOCS / "hooks" / "index.md").read_text()
    )


def test_what_the_pages_say_of_hooks_is_of_hooks_that_exist(generate: ModuleType) -> None:
    assert list(generate.FACTS) == list(HOOKS)


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), *(DOCS / "hooks").glob("*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in page.read_text().split("](")[1:]:
        link = target.partition(")")[0].partition("#")[0]
        if link and "://" not in link and not (page.parent / link).exists():
            broken.append(link)
    assert broken == []


# --- the support matrix --------------------------------------------------------------------------------------


def test_the_support_page_is_what_the_reports_say() -> None:
    assert script("support").page() == (DOCS / "support.md").read_text(), "run `make docs`"


@pytest.mark.parametrize("report", sorted((DOCS / "reports").glob("*.json")), ids=lambda report: report.stem)
def test_a_report_is_of_its_platform_and_whole(report: Path) -> None:
    run, standing = script("support").runs()[report.stem], script("support").standings()[report.stem]
    assert run.report.schema == SCHEMA and run.report.platform == report.stem
    assert (run.report.level, run.report.passed) == (standing.level, True)
    assert len(run.report.checks) > 10 and datetime.date.fromisoformat(run.date)


def test_what_has_no_report_is_not_called_tested() -> None:
    page = (DOCS / "support.md").read_text().splitlines()
    (head,) = [line for line in page if line.startswith("| | `")]
    (verified,) = [line for line in page if line.startswith("| verified |")]
    columns = dict(zip(head.split("|")[2:-1], verified.split("|")[2:-1], strict=True))
    assert columns
    for name, words in columns.items():
        reported = (DOCS / "reports" / f"{name.strip(' `')}.json").is_file()
        assert reported is (words.strip(" *") not in ("not run", *script("support").WITHOUT_REPORT)), name


# --- the examples --------------------------------------------------------------------------------------------

NAMES = sorted(path.name for path in EXAMPLES.iterdir() if (path / "plugin.py").is_file())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every example, as pip would leave it."""
    site = tmp_path / "site"
    site.mkdir()
    for name in NAMES:
        distributions.install(site, name.replace("_", "-"), {"core.plugins": {name: f"{name}.plugin"}}, {})
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(site))
    yield


def target(kind: str, name: str, **options: Any) -> Any:
    """What an example names, loaded as core loads it."""
    return getattr(plugins.extensions(parse_options(options)), kind)[name].load()


def tokens(model: Path, params: SamplingParams = GREEDY, **options: Any) -> list[int]:
    with LLM(str(model), platform="cpu", dtype="float32", progress=False, max_model_len=128, **options) as llm:
        return llm.generate([PROMPT], params)[0].outputs[0].token_ids


def test_each_is_a_plugin_and_each_hook_is_shown(installed: None) -> None:
    added = plugins.extensions(parse_options({}))
    shown = {kind for kind, table in added.tables() for extension in table.values() if extension.load()}
    assert shown == set(EXTENSION_HOOKS) - {"models"}, "models has plugins/model-example"


def test_int8_checkpoints_are_decoded(installed: None, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    decoded = Path(shutil.copytree(tiny_model("llama"), tmp_path / "decoded"))
    stored = Path(shutil.copytree(decoded, tmp_path / "stored"))
    tensors = load_file(decoded / "model.safetensors")
    packed: dict[str, Any] = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = np.abs(tensors[name]).max(axis=1)
        packed[name] = np.rint(tensors[name] / scale[:, None] * 127).astype(np.int8)
        packed[name.removesuffix(".weight") + ".scale"] = scale
        tensors[name] = packed[name].astype(np.float32) * (scale[:, None] / 127)
    save_file(tensors, decoded / "model.safetensors")
    save_file({**tensors, **packed}, stored / "model.safetensors")
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "acme_int8"}
    (stored / "config.json").write_text(json.dumps(config))
    assert tokens(stored) == tokens(decoded)


def test_blocks_are_found_again_in_a_directory(
    installed: None, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"kv_connector": "directory", "plugin_opt": (f"acme_directory.path={tmp_path / 'kv'}",)}
    first = tokens(tiny_model("llama"), **options)
    assert list((tmp_path / "kv").iterdir())
    with LLM(
        str(tiny_model("llama")), platform="cpu", dtype="float32", progress=False, max_model_len=128, **options
    ) as llm:
        (output,) = llm.generate([PROMPT], GREEDY)
    assert output.outputs[0].token_ids == first == tokens(tiny_model("llama"))
    assert output.num_cached_tokens == 32


def test_a_banned_token_is_not_drawn(installed: None, tiny_model: Callable[[str], Path]) -> None:
    plain = tokens(tiny_model("llama"))
    banned = SamplingParams(
        temperature=0.0, max_tokens=12, ignore_eos=True, extra_args={"banned_token_ids": [plain[0]]}
    )
    other = tokens(tiny_model("llama"), banned, logits_processor=("banned",))
    assert plain[0] not in other
    assert tokens(tiny_model("llama"), logits_processor=("banned",)) == plain


def test_epsilon_leaves_the_likely_tokens(installed: None, tiny_model: Callable[[str], Path]) -> None:
    drawn = SamplingParams(temperature=1.0, seed=3, max_tokens=12, ignore_eos=True, logprobs=0)
    greedy = tokens(tiny_model("llama"))
    assert tokens(tiny_model("llama"), drawn, sampler="epsilon") != greedy
    most = {"sampler": "epsilon", "plugin_opt": ("acme_epsilon.epsilon=1.0",)}
    assert tokens(tiny_model("llama"), drawn, **most) == greedy


@pytest.mark.parametrize("size", [1, 3, 100])
def test_parsers_do_not_care_how_the_text_is_cut(installed: None, size: int) -> None:
    def events(kind: str, text: str) -> list[Any]:
        parser = target(kind, "acme")(ParserContext())
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        return [*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()]

    def joined(kind: str, text: str, of: type) -> str:
        return "".join(event.text for event in events(kind, text) if isinstance(event, of))

    text = "# first\n# second\nThe answer.\n# not a thought"
    assert joined("reasoning_parsers", text, ReasoningDelta) == " first\n second\n"
    assert joined("reasoning_parsers", text, ContentDelta) == "The answer.\n# not a thought"
    call = events("tool_parsers", '@weather {"city": "Oslo"}')
    assert [type(event) for event in call] == [ToolCallStart, ArgumentsDelta]
    assert (call[0].name, call[1].text) == ("weather", '{"city": "Oslo"}')
    for text in ("Hello @you", "@weather Oslo", "@"):
        assert joined("tool_parsers", text, ContentDelta) == text


def test_a_route_is_an_aiohttp_route(installed: None) -> None:
    (route,) = target("server_routes", "shout")(None)
    assert isinstance(route, web.RouteDef) and (route.method, route.path) == ("POST", "/v1/shout")


def test_an_answer_is_a_line(installed: None, tmp_path: Path) -> None:
    sink = target("metrics_sinks", "lines")("m", {"path": str(tmp_path / "lines")})
    choice = FinishedChoice(
        request_id="r", index=0, reason="stop", prompt_tokens=3, cached_tokens=0, generated_tokens=2, max_tokens=9,
        seconds=0.5, first_token_seconds=0.1, seconds_per_token=0.2,
    )  # fmt: skip
    sink.first_token(0.1)
    sink.next_token(0.2)
    sink.finished(choice)
    sink.close()
    (line,) = (tmp_path / "lines").read_text().splitlines()
    assert json.loads(line)["model"] == "m" and json.loads(line)["generated_tokens"] == 2
