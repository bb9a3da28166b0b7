"""Answers of a given form: what may come next of a JSON schema, a regex, a choice or a grammar. Torch-free."""

from __future__ import annotations

from core.structured.base import Matcher, StructuredOutputs
from core.structured.grammar import check
from core.structured.guidance import Matchers

__all__ = ["Matcher", "Matchers", "StructuredOutputs", "check"]
