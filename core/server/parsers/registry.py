"""The parsers by name: the core's own and those of plugins, found and loaded in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

import core
from core.config import nearest
from core.errors import ConfigError
from core.extensions import Extension, Extensions
from core.server.options import ServerOptions
from core.server.parsers.answer import AnswerParser
from core.server.parsers.base import ParserContext, ReasoningParser, ToolParser

_BUILT_IN = {
    "reasoning_parsers": {
        "deepseek_r1": "core.server.parsers.thinking:DeepSeekR1ReasoningParser",
        "qwen3": "core.server.parsers.thinking:Qwen3ReasoningParser",
    },
    "tool_parsers": {
        "hermes": "core.server.parsers.hermes:HermesToolParser",
        "llama3_json": "core.server.parsers.llama3_json:Llama3JsonToolParser",
        "mistral": "core.server.parsers.mistral:MistralToolParser",
        "pythonic": "core.server.parsers.pythonic:PythonicToolParser",
    },
}


@dataclass(frozen=True)
class Chosen:
    """The parsers that the options name; nothing of them is imported yet."""

    reasoning: Extension | None
    tools: Extension | None

    def load(self) -> Parsers:
        """Import them. Raises PluginLoadError naming the distribution."""
        return Parsers(_load(self.reasoning, ReasoningParser), _load(self.tools, ToolParser))


@dataclass(frozen=True)
class Loaded:
    """A parser's class, and the options given to its plugin."""

    make: Any  # called with a ParserContext
    options: Mapping[str, str]

    def __call__(self, context: ParserContext) -> Any:
        """A new one, for one choice."""
        return self.make(msgspec.structs.replace(context, options=self.options))


@dataclass(frozen=True)
class Parsers:
    """What a server was given to read its model's answers with."""

    reasoning: Loaded | None = None
    tools: Loaded | None = None

    def need_special_tokens(self, *, tools: bool) -> bool:
        """Whether one that is used sees more of the text than clients do; `tools`: some may be called."""
        used = [parser for parser in (self.reasoning, self.tools if tools else None) if parser is not None]
        return any(parser.make.special_tokens for parser in used)

    def for_choice(self, context: ParserContext, *, parallel: bool) -> AnswerParser:
        """New parsers for one choice; calls are looked for where the request has tools that may be called."""
        return AnswerParser(
            self.reasoning(context) if self.reasoning is not None else None,
            self.tools(context) if self.tools is not None and context.tools else None,
            parallel=parallel,
        )


def choose_parsers(options: ServerOptions, extensions: Extensions) -> Chosen:
    """The parsers that `options` name, by name only, so that a wrong one is known before any process starts.

    Raises ConfigError for a name that nothing has, PluginLoadError for a plugin that takes a name of the core's.
    """
    return Chosen(
        _choose("--reasoning-parser", options.reasoning_parser, "reasoning_parsers", extensions.reasoning_parsers),
        _choose("--tool-call-parser", options.tool_call_parser, "tool_parsers", extensions.tool_parsers),
    )


def _choose(flag: str, name: str | None, kind: str, added: Mapping[str, Extension]) -> Extension | None:
    own = {
        known: Extension(kind=kind, name=known, target=target, plugin="core", distribution=f"core {core.__version__}")
        for known, target in _BUILT_IN[kind].items()
    }
    for extension in added.values():
        if extension.name in own:
            raise extension.error("has the name of one of the core's own")
    if name is None:
        return None
    known = {**own, **added}
    if name not in known:
        message = f"there is no parser {name!r}{nearest(name, list(known))} (there are: {', '.join(sorted(known))})"
        raise ConfigError(flag, message)
    return known[name]


def _load(extension: Extension | None, base: type) -> Loaded | None:
    if extension is None:
        return None
    found = extension.load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise extension.error(f"is {found!r} where a {base.__module__}.{base.__name__} is due")
    if missing := getattr(found, "__abstractmethods__", None):
        raise extension.error(f"does not implement {', '.join(sorted(missing))}")
    return Loaded(found, extension.options)
