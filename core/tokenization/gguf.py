"""A tokenizer from the `tokenizer.*` metadata of a GGUF file.

Keys and meanings: the GGUF specification (ggml, docs/gguf.md) and what llama.cpp does with them. Two models are
known: `gpt2` (byte-level BPE with merges) and `llama` (sentencepiece BPE, whose merges follow from the scores).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from core.errors import TokenizerError
from core.tokenization.chat import ChatTemplate
from core.tokenization.errors import translated
from core.tokenization.pretokenizers import IGNORE_MERGES, NAMES, byte_level_pre_tokenizer
from core.tokenization.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # of tokenizer.ggml.token_type; 1 normal, 5 unused
_SPACE = "▁"

_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # as the specification spells it
    "pad_token": "padding_token_id",
}

_T = TypeVar("_T")


def tokenizer_from_gguf(
    metadata: Mapping[str, object], file: str, *, chat_template: ChatTemplate | None = None
) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes; `file` is named in errors.

    `chat_template` replaces the file's own. Raises `TokenizerError` naming the key that is missing, of a wrong type,
    out of range or contradictory, or a tokenizer model that is not known.
    """
    header = _Header(metadata, file)
    model = header.string("ggml.model")
    if model == "gpt2":
        backend = _byte_level(header)
    elif model == "llama":
        backend = _sentencepiece(header)
    else:
        header.fail("ggml.model", f"{model!r} is not supported, only 'gpt2' and 'llama'")
    ids = {role: token_id for role, key in _ROLES.items() if (token_id := header.token_id(key)) is not None}
    special_tokens = {role: header.tokens[token_id] for role, token_id in ids.items()}
    bos, eos = special_tokens.get("bos_token"), special_tokens.get("eos_token")
    add_bos = header.boolean("ggml.add_bos_token", model == "llama")
    add_eos = header.boolean("ggml.add_eos_token", False)
    ends = (header.token_id("eot_token_id"), header.token_id("eom_token_id"))
    with translated(f"{file}: special tokens"):
        backend.post_processor = _bos_eos_processor(backend, bos if add_bos else None, eos if add_eos else None)
    return Tokenizer(
        backend,
        special_tokens=special_tokens,
        chat_template=chat_template or header.chat_template(),
        extra_eos_token_ids=[end for end in ends if end is not None],
    )


class _Header:
    """Checked access to the metadata. Keys are given without their `tokenizer.`."""

    def __init__(self, metadata: Mapping[str, object], file: str) -> None:
        self._metadata = metadata
        self._file = file
        self.tokens: list[str] = self.array("ggml.tokens", str)
        if not self.tokens:
            self.fail("ggml.tokens", "is empty")
        self.vocab = {token: i for i, token in enumerate(self.tokens)}
        if len(self.vocab) < len(self.tokens):
            again = next(token for i, token in enumerate(self.tokens) if self.vocab[token] != i)
            self.fail("ggml.tokens", f"{again!r} appears twice")
        self.types: list[int] = self.per_token("ggml.token_type", int) or [1] * len(self.tokens)

    def fail(self, key: str, message: str) -> NoReturn:
        raise TokenizerError(f"{self._file}: tokenizer.{key}: {message}")

    def has(self, key: str) -> bool:
        return f"tokenizer.{key}" in self._metadata

    def string(self, key: str, default: str | None = None) -> str:
        return self._scalar(key, str, default)

    def boolean(self, key: str, default: bool) -> bool:
        return self._scalar(key, bool, default)

    def array(self, key: str, kind: type[_T]) -> list[_T]:
        value: Any = self._metadata.get(f"tokenizer.{key}")
        if value is None:
            self.fail(key, "is missing")
        if not isinstance(value, list | tuple):
            tolist: Callable[[], Any] | None = getattr(value, "tolist", None)  # a numpy array
            value = tolist() if tolist is not None else value
        if not isinstance(value, list | tuple):
            self.fail(key, f"is {type(value).__name__}, not an array")
        if wrong := set(map(type, value)) - {kind}:
            self.fail(key, f"holds {wrong.pop().__name__}, not {kind.__name__}")
        return cast("list[_T]", list(value))

    def per_token(self, key: str, kind: type[_T]) -> list[_T] | None:
        """An array with one entry for each token, None where the file has none."""
        if not self.has(key):
            return None
        values = self.array(key, kind)
        if len(values) != len(self.tokens):
            self.fail(key, f"has {len(values)} entries for {len(self.tokens)} tokens")
        return values

    def token_id(self, name: str) -> int | None:
        key = f"ggml.{name}"
        if not self.has(key):
            return None
        token_id = self._scalar(key, int, None)
        if not 0 <= token_id < len(self.tokens):
            self.fail(key, f"{token_id} is not the id of one of the {len(self.tokens)} tokens")
        return token_id

    def chat_template(self) -> ChatTemplate | None:
        """`tokenizer.chat_template`, and `tokenizer.chat_template.tool_use` where there is one."""
        if not self.has("chat_template"):
            return None
        templates = {"default": self.string("chat_template")}
        if self.has("chat_template.tool_use"):
            templates["tool_use"] = self.string("chat_template.tool_use")
        return ChatTemplate(templates, source=f"{self._file}: tokenizer.chat_template")

    def _scalar(self, key: str, kind: type[_T], default: _T | None) -> _T:
        value = self._metadata.get(f"tokenizer.{key}", default)
        if value is None:
            self.fail(key, "is missing")
        if type(value) is not kind:
            self.fail(key, f"is {type(value).__name__}, not {kind.__name__}")
        return value


def _byte_level(header: _Header) -> tokenizers.Tokenizer:
    """GPT-2's BPE: words spelt in the byte alphabet, merged in the order of `tokenizer.ggml.merges`."""
    name = header.string("ggml.pre", "default")
    pre_tokenizer = byte_level_pre_tokenizer(name)
    if pre_tokenizer is None:
        header.fail("ggml.pre", f"{name!r} is not known; known are {', '.join(NAMES)}")
    with translated(f"tokenizer.ggml.pre {name!r}"):
        model = models.BPE(header.vocab, _file_merges(header), ignore_merges=name in IGNORE_MERGES)
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizer
        backend.decoder = decoders.ByteLevel()
        _add_special_tokens(backend, header)
    return backend


def _sentencepiece(header: _Header) -> tokenizers.Tokenizer:
    """Sentencepiece's BPE: spaces as `▁`, a space put before each text, unknown characters as bytes."""
    unknown = header.token_id("unknown_token_id")
    merges = _file_merges(header) if header.has("ggml.merges") else _merges_by_score(header)
    space_prefix = header.boolean("ggml.add_space_prefix", True)
    with translated("tokenizer.ggml.tokens"):
        model = models.BPE(
            header.vocab,
            merges,
            unk_token=None if unknown is None else header.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
        backend = tokenizers.Tokenizer(model)
        to_space = normalizers.Replace(" ", _SPACE)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), to_space]) if space_prefix else to_space
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_prefix else steps)
        _add_special_tokens(backend, header)
    return backend


def _file_merges(header: _Header) -> list[tuple[str, str]]:
    """`tokenizer.ggml.merges`, each checked: the library aborts on some that name no token."""
    vocab = header.vocab
    merges: list[tuple[str, str]] = []
    for merge in header.array("ggml.merges", str):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            header.fail("ggml.merges", f"entry {len(merges)}, {merge!r}, does not join two tokens into a third")
        merges.append((left, right))
    return merges


def _merges_by_score(header: _Header) -> list[tuple[str, str]]:
    """Every pair of tokens that joins into a token, the highest score first (sentencepiece merges in that order)."""
    vocab = header.vocab
    scores = header.per_token("ggml.scores", float)
    if scores is None:
        header.fail("ggml.scores", "is missing, and there are no merges")
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, score, kind in zip(header.tokens, scores, header.types, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _BYTE):
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocab and right in vocab:
                ranked.append((-score, -len(left), -len(right), left, right))
    ranked.sort(key=lambda entry: entry[:3])
    return [(left, right) for *_, left, right in ranked]


def _add_special_tokens(backend: tokenizers.Tokenizer, header: _Header) -> None:
    """Control tokens, and those that a user defined: found whole in a text, before anything else."""
    typed = list(zip(header.tokens, header.types, strict=True))
    control = [AddedToken(t, normalized=False, special=True) for t, kind in typed if kind in (_CONTROL, _UNKNOWN)]
    defined = [AddedToken(t, normalized=False, special=False) for t, kind in typed if kind == _USER_DEFINED]
    backend.add_special_tokens(control)
    backend.add_tokens(defined)


def _bos_eos_processor(
    backend: tokenizers.Tokenizer, bos: str | None, eos: str | None
) -> processors.TemplateProcessing | None:
    """Puts `bos` before each text and `eos` after it, each where it is given; None where neither is."""
    given = [token for token in (bos, eos) if token is not None]
    if not given:
        return None
    single = [*([bos] if bos is not None else []), "$A", *([eos] if eos is not None else [])]
    return processors.TemplateProcessing(
        single=single, special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(given)]
    )
