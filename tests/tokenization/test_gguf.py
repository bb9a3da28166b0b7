# ruff: noqa: RUF001 (full-width characters are what is tested)
from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers
from vocabularies import demo_file, gpt2_metadata, llama_metadata

from core.errors import TokenizerError
from core.tokenization import Tokenizer, tokenizer_from_gguf
from core.tokenization.pretokenizers import NAMES, byte_level_pre_tokenizer
from core.weights.gguf.header import read_gguf_metadata

SAMPLES = [
    "Hello world's 12345 １２３ numbers, DON'T  stop\n\n\n  x = y+1;\t// done…  ",
    "你好，世界！これはテストです。한국어 עברית العربية e\u0301 👩‍👩‍👧 \u200d\0\ufeff",
    " leading", "trailing ", "<|im_start|>user\n<|im_end|>", "",
]  # fmt: skip


def words(name: str, text: str) -> list[str]:
    """What a pre-tokenizer splits `text` into."""
    pre_tokenizer = byte_level_pre_tokenizer(name)
    assert pre_tokenizer is not None
    return [text[begin:end] for _, (begin, end) in pre_tokenizer.pre_tokenize_str(text)]


def test_demo_encodes_like_smollms_own_pipeline(demo: Tokenizer) -> None:
    metadata: dict[str, Any] = dict(read_gguf_metadata(demo_file()))
    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    reference = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    reference.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    reference.add_special_tokens(list(vocabulary)[:17])
    rng = random.Random(7)
    ranges = [(32, 127), (32, 127), (0, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (48, 58)]
    texts = ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(40)) for _ in range(1000)]
    for text in texts + SAMPLES:
        assert demo.encode(text) == reference.encode(text).ids


def test_demo_facts(demo: Tokenizer) -> None:
    assert (demo.vocab_size, demo.bos_token_id, demo.eos_token_ids) == (49152, 1, (2,))
    assert demo.special_ids == frozenset(range(17))
    assert demo.special_tokens["eos_token"] == "<|im_end|>"
    assert demo.has_chat_template


@pytest.mark.parametrize("name", NAMES)
def test_every_pre_tokenizer_keeps_all_text(name: str) -> None:
    for text in SAMPLES:
        joined = "".join(words(name, text))
        assert joined == text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "a 1234's  b", ["a", " 1234", "'s", " ", " b"]),
        ("smollm", "a 12's", ["a", " ", "1", "2", "'s"]),
        ("llama-bpe", "a 12345'S \n\nb", ["a", " ", "123", "45", "'S", " \n\n", "b"]),
        ("qwen2", "(ab 12", ["(ab", " ", "1", "2"]),
        ("tekken", "HelloWorld 12/\n", ["Hello", "World", " ", "1", "2", "/\n"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("deepseek-v3", "x1234一二 +y", ["x", "123", "4", "一二", " +", "y"]),
        ("deepseek-coder", "a\nb 12", ["a", "\n", "b", " ", "1", "2"]),
    ],
)
def test_pre_tokenizers_split_as_published(name: str, text: str, expected: list[str]) -> None:
    assert words(name, text) == expected


def test_control_tokens_are_whole_and_user_defined_ones_are_not_special() -> None:
    tokenizer = tokenizer_from_gguf(gpt2_metadata(), "f")
    ids = tokenizer.encode("hello<think><|end|>")
    assert ids[1:] == [2, 1]
    assert tokenizer.decode(ids) == "hello<think>"


def test_bos_and_eos_are_added_where_the_file_says_so() -> None:
    assert tokenizer_from_gguf(llama_metadata(), "f").encode("")[:1] == [1]
    assert tokenizer_from_gguf(llama_metadata(add_bos_token=False), "f").encode("") == []
    tokenizer = tokenizer_from_gguf(gpt2_metadata(add_bos_token=True, add_eos_token=True), "f")
    assert (tokenizer.encode("h")[0], tokenizer.encode("h")[-1]) == (0, 1)
    assert len(tokenizer.encode("h", add_special_tokens=False)) == 1


def test_ends_of_turn_are_ends_of_answers() -> None:
    metadata = gpt2_metadata(eot_token_id=2, eom_token_id=1)
    assert tokenizer_from_gguf(metadata, "f").eos_token_ids == (1, 2)


def sentencepiece(text: str, metadata: dict[str, Any]) -> list[str]:
    """Sentencepiece's BPE as its paper has it: join the neighbours whose piece scores highest, the leftmost first."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    score_of = dict(zip(tokens[259:], scores[259:], strict=True))
    pieces = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(score_of.get(a + b, -1.0), -i) for i, (a, b) in enumerate(itertools.pairwise(pieces))]
        best, at = max(pairs, default=(-1.0, 0))
        if best < 0:
            break
        pieces[-at : -at + 2] = [pieces[-at] + pieces[-at + 1]]
    return [t for p in pieces for t in ([p] if p in score_of else [f"<0x{byte:02X}>" for byte in p.encode()])]


@given(text=st.text(st.sampled_from("helo 你好éXs>"), max_size=20))
def test_llama_encodes_like_sentencepiece(text: str) -> None:
    metadata = llama_metadata()
    tokenizer = tokenizer_from_gguf(metadata, "f")
    expected = [tokenizer.token_id(piece) for piece in sentencepiece(text, metadata)]
    assert tokenizer.encode(text, add_special_tokens=False) == expected


def test_no_space_prefix() -> None:
    tokenizer = tokenizer_from_gguf(llama_metadata(add_space_prefix=False), "f")
    assert tokenizer.encode("hello", add_special_tokens=False) == [tokenizer.token_id("hello")]
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_numpy_arrays_are_taken() -> None:
    metadata = llama_metadata()
    metadata["tokenizer.ggml.scores"] = np.array(metadata["tokenizer.ggml.scores"])
    metadata["tokenizer.ggml.token_type"] = np.array(metadata["tokenizer.ggml.token_type"], dtype=np.int32)
    assert tokenizer_from_gguf(metadata, "f").encode("hello") == tokenizer_from_gguf(llama_metadata(), "f").encode(
        "hello"
    )


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({}, "ggml.tokens"),
        (gpt2_metadata(model=None), "ggml.model"),
        (gpt2_metadata(model="rwkv"), "ggml.model"),
        (gpt2_metadata(model=7), "ggml.model"),
        (gpt2_metadata(pre="future"), "ggml.pre"),
        (gpt2_metadata(tokens=[]), "ggml.tokens"),
        (gpt2_metadata(tokens="abc"), "ggml.tokens"),
        (gpt2_metadata(tokens=["a", 1]), "ggml.tokens"),
        (gpt2_metadata(tokens=["a", "b", "a"]), "ggml.tokens"),
        (gpt2_metadata(token_type=[1]), "ggml.token_type"),
        (gpt2_metadata(token_type={"a": 1}), "ggml.token_type"),
        (gpt2_metadata(merges=None), "ggml.merges"),
        (gpt2_metadata(merges=["h e", "he zzz"]), "ggml.merges"),
        (gpt2_metadata(merges=["h"]), "ggml.merges"),
        (gpt2_metadata(merges=["h h"]), "ggml.merges"),
        (gpt2_metadata(merges=[""]), "ggml.merges"),
        (gpt2_metadata(merges=[None]), "ggml.merges"),
        (gpt2_metadata(eos_token_id=10**9), "ggml.eos_token_id"),
        (gpt2_metadata(eos_token_id=-1), "ggml.eos_token_id"),
        (gpt2_metadata(eos_token_id=True), "ggml.eos_token_id"),
        (gpt2_metadata(bos_token_id="<s>"), "ggml.bos_token_id"),
        (gpt2_metadata(add_bos_token=1), "ggml.add_bos_token"),
        (llama_metadata(scores=None), "ggml.scores"),
        (llama_metadata(scores=[1.0]), "ggml.scores"),
        (gpt2_metadata() | {"tokenizer.chat_template": 5}, "chat_template"),
        (gpt2_metadata() | {"tokenizer.chat_template": "{% if %}"}, "chat_template"),
    ],
)
def test_hostile_metadata_names_file_and_key(metadata: dict[str, Any], key: str) -> None:
    with pytest.raises(TokenizerError, match=rf"^evil\.gguf: tokenizer\.{key}"):
        tokenizer_from_gguf(metadata, "evil.gguf")
