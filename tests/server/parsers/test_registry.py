"""Parsers by name: the core's own and those of plugins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, PluginLoadError
from core.extensions import NO_EXTENSIONS, Extension, Extensions
from core.server.options import ServerOptions
from core.server.parsers import ParserContext, choose_parsers
from core.server.parsers.thinking import Qwen3ReasoningParser

TOOL = {"type": "function", "function": {"name": "f"}}


def added(kind: str, name: str, target: str = "acme_own_parsers:Own", **options: str) -> Extensions:
    extension = Extension(
        kind=kind, name=name, target=target, plugin="acme", distribution="acme-parsers 1.0", options=options
    )
    return Extensions(**{kind: {name: extension}})


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
def test_the_cores_own_tool_parsers(name: str) -> None:
    parsers = choose_parsers(ServerOptions(tool_call_parser=name), NO_EXTENSIONS).load()
    parser = parsers.for_choice(ParserContext(tools=(TOOL,)), parallel=True)
    list(
        parser.feed(
            '<tool_call>{"name": "f", "arguments": {}}' if name == "hermes" else '{"name": "f", "parameters": {}}'
        )
    )
    assert parser.called and not parsers.need_special_tokens(tools=True)


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
def test_the_cores_own_reasoning_parsers(name: str) -> None:
    parser = (
        choose_parsers(ServerOptions(reasoning_parser=name), NO_EXTENSIONS)
        .load()
        .for_choice(ParserContext(), parallel=True)
    )
    assert [type(event).__name__ for event in parser.feed("<think>a</think>b")] == ["ReasoningDelta", "ContentDelta"]


def test_none_is_chosen_unless_named() -> None:
    parsers = choose_parsers(ServerOptions(), added("tool_parsers", "mine")).load()
    assert parsers.tools is None and parsers.reasoning is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_call_parser": "herms"}, "--tool-call-parser: there is no parser 'herms'; did you mean 'hermes'"),
        ({"tool_call_parser": "zzz"}, "(there are: hermes, llama3_json, mine, mistral, pythonic)"),
        (
            {"reasoning_parser": "hermes"},
            "--reasoning-parser: there is no parser 'hermes' (there are: deepseek_r1, qwen3)",
        ),
    ],
)
def test_an_unknown_name_lists_those_that_there_are(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_parsers(ServerOptions(**options), added("tool_parsers", "mine"))
    assert words in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("tool_parsers", "hermes"), ("reasoning_parsers", "qwen3")])
def test_a_plugin_cannot_take_a_name_of_the_cores(kind: str, name: str) -> None:
    with pytest.raises(PluginLoadError, match=rf"{name}.*acme-parsers 1\.0.*one of the core's own"):
        choose_parsers(ServerOptions(), added(kind, name))


def test_a_name_is_checked_without_an_import() -> None:
    extensions = added("tool_parsers", "mine", "no_such_module:Own")
    chosen = choose_parsers(ServerOptions(tool_call_parser="mine"), extensions)
    with pytest.raises(PluginLoadError, match=r"acme-parsers 1\.0.*no_such_module"):
        chosen.load()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("Own = 7", "is 7 where a core.server.parsers.base.ToolParser is due"),
        ("from core.server.parsers.base import ReasoningParser as Own", "ToolParser is due"),
        (
            "from core.server.parsers.base import ToolParser\nclass Own(ToolParser):\n    def feed(self, text): ...",
            "does not implement finish",
        ),
    ],
)
def test_what_is_no_parser_is_refused(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_own_parsers.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_own_parsers", raising=False)
    extensions = added("tool_parsers", "mine")
    with pytest.raises(PluginLoadError) as caught:
        choose_parsers(ServerOptions(tool_call_parser="mine"), extensions).load()
    assert words in str(caught.value) and "acme-parsers 1.0" in str(caught.value)


def test_a_parser_gets_its_plugins_options_and_its_request() -> None:
    target = f"{Qwen3ReasoningParser.__module__}:{Qwen3ReasoningParser.__name__}"
    extensions = added("reasoning_parsers", "mine", target, depth="2")
    parsers = choose_parsers(ServerOptions(reasoning_parser="mine"), extensions).load()
    assert parsers.reasoning is not None
    context = parsers.reasoning(ParserContext(prompt="Hi")).context
    assert (context.options, context.prompt) == ({"depth": "2"}, "Hi")
