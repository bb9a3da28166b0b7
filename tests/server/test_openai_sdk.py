"""The openai SDK against the HTTP server, with an engine that answers from a script."""

from __future__ import annotations

from openai_sdk import OpenAISDK


class TestOpenAISDK(OpenAISDK):
    """All of it."""
