"""Chat templates: messages to the prompt text that a model was trained on.

The meaning is transformers' `apply_chat_template`: jinja2 with trimmed blocks, loop controls, `tojson` without HTML
escapes, `raise_exception`, `strftime_now`, and the special tokens as variables. A template comes with a model and is
not trusted: `core.tokenization.sandbox` says what it cannot do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import InvalidRequest, TokenizerError

if TYPE_CHECKING:
    from core.tokenization.sandbox import CompiledTemplate

#: Ends the message to continue while the template renders. The space after it shows whether the template strips.
_CONTINUE = "<CORE-CONTINUES-HERE> "
_MAX_DEPTH = 64


class ChatTemplate:
    """One template, or several by name: `default`, and `tool_use` for chats with tools. Compiled once, thread-safe.

    Raises `TokenizerError` naming `source` where a template is not valid jinja.
    """

    def __init__(self, templates: str | Mapping[str, str], *, source: str = "chat template") -> None:
        from core.tokenization.sandbox import compile_template  # jinja2 takes 60 ms to import

        named = {"default": templates} if isinstance(templates, str) else dict(templates)
        if not named:
            raise TokenizerError(f"{source}: the list of templates is empty")
        self._source = source
        self._texts = tuple(named.values())
        self._compiled = {name: compile_template(text, source) for name, text in named.items()}

    def mentions(self, variable: str) -> bool:
        """Whether the word stands in a template: if not, giving the variable changes nothing."""
        return any(re.search(rf"\b{re.escape(variable)}\b", text) for text in self._texts)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        special_tokens: Mapping[str, str],
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text. `kwargs` are further variables for the template (`enable_thinking=False`).

        With `continue_final_message` the prompt ends inside the last message, for the model to go on with it.
        Raises `InvalidRequest` where the template refuses the messages or cannot render them, `TokenizerError` where
        the template does what the sandbox forbids or exceeds its bounds.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message: set add_generation_prompt to false with it", param="continue_final_message"
            )
        chat = _checked_messages(messages)
        continued = _mark_final(chat) if continue_final_message else ""
        variables = {
            **special_tokens,
            **_plain(kwargs, "chat_template_kwargs"),
            "messages": chat,
            "tools": _plain(tools, "tools"),
            "documents": _plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._choose(tools).render(variables)
        return _cut_at_mark(text, continued) if continue_final_message else text

    def _choose(self, tools: object) -> CompiledTemplate:
        name = "tool_use" if tools is not None and "tool_use" in self._compiled else "default"
        if name not in self._compiled:
            raise TokenizerError(f"{self._source}: no template named 'default', only {sorted(self._compiled)}")
        return self._compiled[name]


def _checked_messages(messages: object) -> list[dict[str, Any]]:
    """A deep copy of the messages, without the keys whose value is null: templates test for a key's presence."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages: give a list of at least one message", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"messages[{i}]: a message is an object with role and content", param="messages")
    return [
        {key: _plain(value, "messages") for key, value in message.items() if value is not None} for message in messages
    ]


def _plain(value: Any, param: str, depth: int = 0) -> Any:
    """A deep copy made of JSON's own types only: a template must meet no object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth == _MAX_DEPTH:
        raise InvalidRequest(f"{param}: nested more than {_MAX_DEPTH} deep", param=param)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list | tuple):
        return [_plain(item, param, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_plain(key, param, depth + 1): _plain(item, param, depth + 1) for key, item in value.items()}
    raise InvalidRequest(f"{param}: {type(value).__name__} is not a JSON type", param=param)


def _mark_final(chat: list[dict[str, Any]]) -> str:
    """Put the mark at the end of the last message's text, and return that text."""
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUE
        return content
    if isinstance(content, list):
        for part in reversed(content):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text: str = part["text"]
                part["text"] = text + _CONTINUE
                return text
    raise InvalidRequest("continue_final_message: the last message has no text to continue", param="messages")


def _cut_at_mark(rendered: str, continued: str) -> str:
    at = rendered.rfind(_CONTINUE.strip())
    if at < 0 or continued.strip() not in rendered:
        raise InvalidRequest(
            "continue_final_message: the chat template changes or leaves out the last message", param="messages"
        )
    kept = rendered[:at]
    return kept if rendered.startswith(_CONTINUE, at) else kept.rstrip()
