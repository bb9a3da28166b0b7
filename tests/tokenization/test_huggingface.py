from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vocabularies import byte_level

from core.errors import InvalidRequest, TokenizerError
from core.tokenization import Tokenizer, load_tokenizer


def directory(path: Path, config: dict[str, Any] | None = None, **files: Any) -> str:
    """A model directory: the byte-level tokenizer, a config, other files by name (JSON unless text)."""
    byte_level().backend.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | (config or {})
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bos_token": "<|begin|>", "eos_token": "<|end|>"},
        {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": True},
        {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": True, "add_eos_token": True},
        {"bos_token": {"__type": "AddedToken", "content": "<|begin|>", "lstrip": False}, "add_bos_token": False},
        {"bos_token": "<new>", "pad_token": "<pad>", "add_bos_token": True},
        {"add_bos_token": True},
        {"eos_token": "<|end|>", "additional_special_tokens": ["<extra>"]},
    ],
)
def test_directories_encode_like_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    path = directory(tmp_path, config)
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    for text in ("hello", "<|begin|> hi <|end|><new><pad><extra>", "你 é"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.special_tokens == {
        key: str(token) for key, token in theirs.special_tokens_map.items() if key in ours.special_tokens
    }


def test_special_tokens_map_fills_what_the_config_leaves_out(tmp_path: Path) -> None:
    path = directory(
        tmp_path, {"bos_token": "<|begin|>"}, special_tokens_map__json={"bos_token": "h", "eos_token": "<|end|>"}
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer.special_tokens == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


def test_where_the_chat_template_comes_from(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "x"}]
    named = [{"name": "default", "template": "config"}, {"name": "tool_use", "template": "tools"}]
    path = directory(tmp_path, {"chat_template": named})
    assert load_tokenizer(path).apply_chat_template(message) == "config"
    assert load_tokenizer(path).apply_chat_template(message, tools=[{}]) == "tools"
    directory(tmp_path, {"chat_template": named}, chat_template__json={"chat_template": "legacy"})
    assert load_tokenizer(path).apply_chat_template(message) == "legacy"
    directory(tmp_path, {"chat_template": named}, chat_template__jinja="{{ bos_token }}jinja")
    assert load_tokenizer(path).apply_chat_template(message) == "jinja"
    assert load_tokenizer(path, chat_template="{{ 'given' }}").apply_chat_template(message) == "given"
    given = str(tmp_path / "chat_template.jinja")
    assert load_tokenizer(path, chat_template=given).apply_chat_template(message) == "jinja"
    with pytest.raises(TokenizerError, match="no such file: nowhere"):
        load_tokenizer(path, chat_template="nowhere")


def test_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(Path(directory(tmp_path)) / "tokenizer.json"))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="--chat-template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"tokenizer__json": "{"}, "tokenizer.json"),
        (
            {"tokenizer__json": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "zz"]]}}'},
            "tokenizer.json",
        ),
        ({"tokenizer_config__json": "[" * 100_000}, "tokenizer_config.json"),
        ({"tokenizer_config__json": "[]"}, "tokenizer_config.json"),
        ({"tokenizer_config__json": {"eos_token": 5}}, "eos_token"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "x"}]}}, "chat_template"),
        ({"chat_template__jinja": "{% endfor %}"}, "chat_template.jinja"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, files: dict[str, Any], named: str) -> None:
    with pytest.raises(TokenizerError, match=named):
        load_tokenizer(directory(tmp_path, **files))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such directory or file"):
        load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_slow_tokenizer_is_converted(tmp_path: Path) -> None:
    byte_level().backend.model.save(str(tmp_path))  # vocab.json and merges.txt
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode("hello 你")) == "hello 你"


def test_bytes_and_text_of_tokens(demo: Tokenizer) -> None:
    ids = demo.encode("Zürich 你🦙")
    assert b"".join(demo.token_bytes(i) for i in ids).decode() == "Zürich 你🦙"
    assert any("\ufffd" in demo.token_text(i) for i in ids)
    assert demo.token_text(2) == "<|im_end|>"
    assert demo.token_bytes(demo.vocab_size + 5) == b""


@pytest.mark.parametrize("token_id", [-1, 2**40, "x", None])
def test_what_is_no_token_id_is_refused(demo: Tokenizer, token_id: Any) -> None:
    with pytest.raises(InvalidRequest, match="not a token id"):
        demo.decode([token_id])


def test_lone_surrogates_are_refused(demo: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"U\+D800 at character 1") as caught:
        demo.encode("a\ud800", param="messages")
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest) as caught:
        demo.encode_batch(["fine", "\udfff"])
    assert caught.value.param == "prompt"


def test_a_batch_is_each_text_by_itself(demo: Tokenizer) -> None:
    texts = ["Hello", "", "你好 " * 50]
    assert demo.encode_batch(texts) == [demo.encode(text) for text in texts]


def test_importing_needs_neither_torch_nor_transformers_nor_jinja() -> None:
    code = "import sys, core.tokenization; print([m for m in ('torch', 'transformers', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
