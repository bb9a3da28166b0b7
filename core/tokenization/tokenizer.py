"""`Tokenizer`: a `tokenizers` backend, the ids that mean something, and the chat template."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from core.errors import InvalidRequest, TokenizerError
from core.tokenization.bounds import max_token_chars
from core.tokenization.chat import ChatTemplate
from core.tokenization.errors import translated
from core.tokenization.pieces import Pieces, pieces_of


class Tokenizer:
    """Encodes, decodes, renders chats. Immutable once made, safe to share between threads.

    `special_tokens` maps the roles that a model names (`bos_token`, `eos_token` …) to their text; chat templates see
    them under these names. `eos_token_ids` are the ends of an answer that the tokenizer itself knows, the main one
    first; a model's `generation_config.json` may know more.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        chat_template: ChatTemplate | None = None,
        extra_eos_token_ids: Sequence[int] = (),
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template
        with translated("tokenizer"):
            self.pieces: Pieces = pieces_of(backend)
            added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.bos_token_id = self._role_id("bos_token")
        self.eos_token_id = self._role_id("eos_token")
        eos = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos, *extra_eos_token_ids]))

    # --- text to tokens ---

    def encode(self, text: str, *, add_special_tokens: bool = True, param: str = "prompt") -> list[int]:
        """The tokens of `text`. Special tokens spelt out in the text become those tokens, as in transformers.

        Raises `InvalidRequest` naming `param` where the text holds a lone surrogate, which no UTF-8 can carry.
        """
        _check_encodable(text, param)
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, param: str = "prompt"
    ) -> list[list[int]]:
        """`encode` for each text, in parallel."""
        for text in texts:
            _check_encodable(text, param)
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [list(encoding.ids) for encoding in encodings]

    def encode_head(
        self, text: str, length: int, *, add_special_tokens: bool = True, param: str = "input"
    ) -> list[int]:
        """The first `length` tokens of `text`, those that the tokenizer puts around every text included. Raises as `encode`."""
        encoding = self._encoding(text, param)
        around = self.backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        encoding.truncate(max(length - around, 0))
        return list(self.backend.post_process(encoding, None, add_special_tokens).ids)[:length]

    def encode_pairs(
        self, pairs: Iterable[tuple[str, str]], length: int | None = None, *, param: str = "input"
    ) -> Iterator[tuple[list[int], int | None]]:
        """The tokens of two texts as one prompt, and where the second begins, if the model is to tell them apart.

        With `length`, tokens are taken off the end of whichever text is longer until they fit. A first text that goes
        with many is tokenized once, however long it is. Raises as `encode`.
        """
        known = None
        for first, second in pairs:
            if first != known:
                known, left = first, self._encoding(first, param)
                lengths = [len(left), 0]
                if length is not None:
                    left.truncate(length)  # more is never kept
            head, right = left, self._encoding(second, param)
            if length is not None:
                lengths[1] = len(right)
                kept = _fitting(lengths, length - self.backend.num_special_tokens_to_add(True))
                head = tokenizers.Encoding.merge([left])  # a copy: the next pair may keep more of it
                head.truncate(kept[0])
                right.truncate(kept[1])
            both = self.backend.post_process(head, right, True)
            yield list(both.ids), both.type_ids.index(1) if 1 in both.type_ids else None

    def _encoding(self, text: str, param: str) -> tokenizers.Encoding:
        _check_encodable(text, param)
        return self.backend.encode(text, add_special_tokens=False)

    @functools.cached_property
    def max_token_chars(self) -> int | None:
        """The most characters of text that one token can stand for, so that a text's length bounds its tokens.

        None where there is no such bound (`core.tokenization.bounds`).
        """
        return max_token_chars(self.backend)

    # --- tokens to text ---

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`, taken as a whole text: bytes that are not UTF-8 become U+FFFD.

        Ids outside the vocabulary (models pad theirs) give nothing. This is the library's `decode`, except that in a
        run of sentencepiece byte tokens only the bytes that are invalid become U+FFFD, not the whole run: what was
        streamed cannot be taken back.
        """
        parts: list[bytes] = []
        for token_id in token_ids:
            if skip_special_tokens and token_id in self.special_ids:
                continue
            if piece := self.pieces[token_id]:
                parts.append(piece if parts else self.pieces.first(token_id))
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Exactly the bytes that the token adds to a text, be they half a character."""
        return self.pieces[token_id]

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; what is not UTF-8 by itself becomes U+FFFD."""
        return self.pieces[token_id].decode("utf-8", "replace")

    # --- facts ---

    @functools.cached_property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included. The model's own vocabulary may be padded beyond it."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary."""
        return self.backend.token_to_id(token)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can be called."""
        return self.chat_template is not None

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a chat; encode it with `add_special_tokens=False`. Raises as `ChatTemplate.render`."""
        if self.chat_template is None:
            raise InvalidRequest(
                "this model has no chat template: use /v1/completions, or start with --chat-template", param="messages"
            )
        return self.chat_template.render(
            messages,
            special_tokens=self.special_tokens,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            continue_final_message=continue_final_message,
            **kwargs,
        )

    def _role_id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        if token is None:
            return None
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise TokenizerError(f"{role}: {token!r} is not in the vocabulary")
        return token_id


def _fitting(lengths: list[int], room: int) -> list[int]:
    """Two lengths that fit `room` together, what is too much taken off the longer one."""
    shorter = min(lengths)
    excess = max(sum(lengths) - max(room, 0), 0)
    longer = max(max(lengths) - excess, 0)
    if longer < shorter:  # then both end up alike
        longer, shorter = -(-max(room, 0) // 2), max(room, 0) // 2
    return [longer, shorter] if lengths[0] >= lengths[1] else [shorter, longer]


def _check_encodable(text: str, param: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{param}: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: send valid Unicode",
            param=param,
        ) from error
