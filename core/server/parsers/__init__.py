"""How models write reasoning and tool calls, one module for each way; the server is told which with two options."""

from __future__ import annotations

from core.server.parsers.answer import AnswerParser
from core.server.parsers.base import ParserContext, ReasoningParser, ToolParser
from core.server.parsers.registry import Parsers, choose_parsers

__all__ = ["AnswerParser", "ParserContext", "Parsers", "ReasoningParser", "ToolParser", "choose_parsers"]
