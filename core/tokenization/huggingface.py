"""`load_tokenizer`: from a Hugging Face directory, a `tokenizer.json`, or a `.gguf` file.

Of a directory these files are read, as transformers reads them: `tokenizer.json`, `tokenizer_config.json`,
`special_tokens_map.json`, and for the chat template `chat_template.jinja`, `additional_chat_templates/*.jinja`,
`chat_template.json` or the `chat_template` in the config, the first of these that exists. Whether a text gets a BOS or
EOS is the post-processor's word in `tokenizer.json`; `add_bos_token` in the config is for slow tokenizers only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from core.errors import TokenizerError
from core.tokenization.chat import ChatTemplate
from core.tokenization.errors import translated
from core.tokenization.gguf import tokenizer_from_gguf
from core.tokenization.slow import convert_slow
from core.tokenization.tokenizer import Tokenizer

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")


def load_tokenizer(path: str, *, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer at `path`. `chat_template`, a jinja file or the template itself, replaces its own.

    Raises `TokenizerError` naming the file that is missing, malformed or not supported.
    """
    place = Path(path)
    override = None if chat_template is None else _given_template(chat_template)
    if place.suffix == ".gguf" and place.is_file():
        from core.weights.gguf.header import read_gguf_metadata  # only GGUF needs it

        return tokenizer_from_gguf(read_gguf_metadata(place), path, chat_template=override)
    if place.is_dir():
        return _from_directory(place, override)
    if place.is_file():
        return Tokenizer(_read_backend(place), special_tokens={}, chat_template=override)
    raise TokenizerError(f"{path}: no such directory or file; give a model directory, a tokenizer.json or a .gguf file")


def _from_directory(directory: Path, override: ChatTemplate | None) -> Tokenizer:
    config = {
        **_read_object(directory / "special_tokens_map.json"),
        **_read_object(directory / "tokenizer_config.json"),
    }
    file = directory / "tokenizer.json"
    backend = _read_backend(file) if file.is_file() else convert_slow(directory)
    special_tokens = {role: _content(config[role], role, directory) for role in _ROLES if config.get(role) is not None}
    with translated(f"{directory}: special tokens"):
        _add_missing_tokens(backend, config, special_tokens)
    template = override or _own_template(directory, config.get("chat_template"))
    return Tokenizer(backend, special_tokens=special_tokens, chat_template=template)


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    with translated(str(file)):
        return tokenizers.Tokenizer.from_file(str(file))


# --- special tokens -------------------------------------------------------------------------------------------


def _add_missing_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """Add what the config calls special and `tokenizer.json` does not: first by id, then by role."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    by_id = config.get("added_tokens_decoder") or {}
    more = [token for key in _MORE_SPECIAL if isinstance(config.get(key), list) for token in config[key]]
    named = [config[role] for role in special_tokens]
    for token in [*(by_id[key] for key in sorted(by_id, key=int)), *named, *more]:
        added = _added_token(token, special=token in named or token in more)
        if added.content not in known:
            known.add(added.content)
            backend.add_special_tokens([added]) if added.special else backend.add_tokens([added])


def _added_token(token: str | dict[str, Any], *, special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=not special)
    flags = {key: bool(token[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in token}
    return AddedToken(token["content"], special=special or bool(token.get("special")), **flags)


def _content(token: object, role: str, directory: Path) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise TokenizerError(
            f"{directory / 'tokenizer_config.json'}: {role}: neither a string nor an object with content"
        )
    return text


# --- chat templates -------------------------------------------------------------------------------------------


def _own_template(directory: Path, configured: object) -> ChatTemplate | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        more = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        named = {"default": _read_text(file)} | {extra.stem: _read_text(extra) for extra in more}
        return ChatTemplate(named, source=str(file))
    legacy = directory / "chat_template.json"
    if legacy.is_file():
        return _template_of(_read_object(legacy).get("chat_template"), f"{legacy}: chat_template")
    return _template_of(configured, f"{directory / 'tokenizer_config.json'}: chat_template")


def _template_of(value: object, source: str) -> ChatTemplate | None:
    """A template from JSON: a string, or a list of named ones."""
    if value is None or isinstance(value, str):
        return None if value is None else ChatTemplate(value, source=source)
    if isinstance(value, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
        for entry in value
    ):
        return ChatTemplate({entry["name"]: entry["template"] for entry in value}, source=source)
    raise TokenizerError(f"{source}: neither a string nor a list of objects with name and template")


def _given_template(given: str) -> ChatTemplate:
    """What a user gave: the template itself if it has a brace or a line break, which no sensible path has."""
    if any(char in given for char in "{}\n"):
        return ChatTemplate(given, source="--chat-template")
    if not Path(given).is_file():
        raise TokenizerError(f"--chat-template: no such file: {given}")
    return ChatTemplate(_read_text(Path(given)), source=given)


# --- files ----------------------------------------------------------------------------------------------------


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{file}: cannot be read: {error}") from error


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file}: holds {type(value).__name__}, not an object")
    return value
