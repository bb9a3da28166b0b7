from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import byte_level, metaspace, sentencepiece, wordpiece

from core.tokenization import IncrementalDetokenizer, Tokenizer
from core.tokenization.pieces import byte_alphabet

BYTE_LEVEL = byte_level()
SENTENCEPIECE = sentencepiece()
KINDS = {"byte_level": BYTE_LEVEL, "sentencepiece": SENTENCEPIECE, "wordpiece": wordpiece(), "metaspace": metaspace()}

ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(
        ["👩‍👩‍👧", "🇩🇪", "e\u0301", "你好", "שלום", "\0", " ", "  ", "\u200d", "\ufffd", "<|end|>", "hello"]
    ),
)
TEXTS = st.lists(ALPHABET, max_size=20).map("".join)


def chunked(data: st.DataObject, ids: list[int]) -> list[list[int]]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def stream(tokenizer: Tokenizer, chunks: list[list[int]], **options: object) -> tuple[str, IncrementalDetokenizer]:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)  # type: ignore[arg-type]
    text = "".join([detokenizer.push(chunk) for chunk in chunks]) + detokenizer.flush()
    assert text == detokenizer.text
    return text, detokenizer


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_in_any_chunks_stream_to_their_decoding(kind: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    text, _ = stream(tokenizer, chunked(data, ids), skip_special_tokens=skip)
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


def test_spaces_between_special_tokens() -> None:
    end = BYTE_LEVEL.token_id("<|end|>")
    assert end is not None
    ids = [
        *BYTE_LEVEL.encode("ab", add_special_tokens=False),
        end,
        end,
        *BYTE_LEVEL.encode("c", add_special_tokens=False),
    ]
    for size in (1, 2, len(ids)):
        chunks = [ids[at : at + size] for at in range(0, len(ids), size)]
        spaced = {"skip_special_tokens": False, "spaces_between_special_tokens": True}
        assert stream(BYTE_LEVEL, chunks, **spaced)[0] == "ab <|end|> <|end|> c"
        assert stream(BYTE_LEVEL, chunks, skip_special_tokens=False)[0] == "ab<|end|><|end|>c"
        assert stream(BYTE_LEVEL, chunks, spaces_between_special_tokens=True)[0] == "abc"


@pytest.mark.parametrize("kind", ["byte_level", "wordpiece", "metaspace"])
@given(data=st.data(), skip=st.booleans())
def test_decode_is_the_librarys(kind: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    expected = tokenizer.backend.decode(ids, skip_special_tokens=skip)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


@given(data=st.data(), text=TEXTS)
def test_text_survives_sentencepiece_and_byte_level(data: st.DataObject, text: str) -> None:
    text = text.replace("▁", "")  # which sentencepiece cannot tell from a space
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        ids = tokenizer.encode(text, add_special_tokens=False)
        decoded, _ = stream(tokenizer, chunked(data, ids), skip_special_tokens=False)
        assert decoded == text == tokenizer.backend.decode(ids, skip_special_tokens=False)


@given(data=st.data(), text=TEXTS)
def test_demo_streams_like_the_library(demo: Tokenizer, data: st.DataObject, text: str) -> None:
    ids = demo.encode(text) + data.draw(st.lists(st.integers(0, demo.vocab_size - 1), max_size=10))
    for skip in (True, False):
        decoded, _ = stream(demo, chunked(data, ids), skip_special_tokens=skip)
        assert decoded == demo.backend.decode(ids, skip_special_tokens=skip)


@given(text=TEXTS)
def test_no_half_characters(text: str) -> None:
    ids = [BYTE_LEVEL.token_id(char) for char in _spelt(text.replace("\ufffd", ""))]
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL)
    for token_id in ids:
        assert token_id is not None
        assert "\ufffd" not in detokenizer.push([token_id])
    assert detokenizer.flush() == ""


def test_an_invalid_sequence_shows_once_it_is_certain() -> None:
    euro = [BYTE_LEVEL.token_id(char) for char in _spelt("€")]
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL)
    assert detokenizer.push([euro[0]]) == ""  # type: ignore[list-item]
    assert detokenizer.push([euro[1]]) == ""  # type: ignore[list-item]
    letter = BYTE_LEVEL.token_id("h")
    assert letter is not None
    assert detokenizer.push([letter]) == "\ufffdh"
    assert detokenizer.push([euro[0]]) == ""  # type: ignore[list-item]
    assert detokenizer.flush() == "\ufffd"


def test_only_the_invalid_bytes_of_a_sentencepiece_run_are_lost() -> None:
    run = [SENTENCEPIECE.token_id(f"<0x{byte:02X}>") for byte in (*"é".encode(), 0xFF)]
    assert SENTENCEPIECE.decode([i for i in run if i is not None]) == "é\ufffd"


def test_a_leading_space_is_stripped_only_at_the_beginning_of_a_text() -> None:
    hello = SENTENCEPIECE.token_id("▁hello")
    bos = SENTENCEPIECE.bos_token_id
    assert hello is not None
    assert bos is not None
    assert stream(SENTENCEPIECE, [[hello], [hello]])[0] == "hello hello"
    assert stream(SENTENCEPIECE, [[hello]], prompt_token_ids=[hello, bos])[0] == " hello"
    assert stream(SENTENCEPIECE, [[hello]], prompt_token_ids=[bos])[0] == "hello"
    assert stream(SENTENCEPIECE, [[bos, hello]], skip_special_tokens=False)[0] == "<s> hello"


def naive_cut(texts: list[str], stop: list[str], include: bool, min_tokens: int) -> tuple[str, str | None]:
    """Append one character after another; stop at the first at which some stop string is complete."""
    full = "".join(texts)
    for end in range(len("".join(texts[:min_tokens])) + 1, len(full) + 1):
        complete = [string for string in stop if full[:end].endswith(string)]
        if complete:
            longest = max(complete, key=len)
            return full[: end if include else end - len(longest)], longest
    return full, None


@given(
    data=st.data(),
    letters=st.lists(st.sampled_from("abc"), max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    include=st.booleans(),
    min_tokens=st.integers(0, 12),
)
def test_stop_strings_like_a_naive_search(
    data: st.DataObject, letters: list[str], stop: list[str], include: bool, min_tokens: int
) -> None:
    ids = [token_id for letter in letters if (token_id := BYTE_LEVEL.token_id(letter)) is not None]
    chunks = chunked(data, ids)
    options = {"stop": stop, "include_stop_str_in_output": include, "min_tokens": min_tokens}
    text, detokenizer = stream(BYTE_LEVEL, chunks, **options)
    assert (text, detokenizer.stop_string) == naive_cut(letters, stop, include, min_tokens)


@given(
    letters=st.lists(st.sampled_from("abc"), max_size=20),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1),
)
def test_exactly_what_may_begin_a_stop_string_is_held_back(letters: list[str], stop: list[str]) -> None:
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL, stop=stop)
    for i, letter in enumerate(letters):
        token_id = BYTE_LEVEL.token_id(letter)
        assert token_id is not None
        detokenizer.push([token_id])
        if detokenizer.stop_string is not None:
            assert detokenizer.push([token_id]) == detokenizer.flush() == ""
            return
        full = "".join(letters[: i + 1])
        beginnings = {string[:k] for string in stop for k in range(1, len(string))}
        held = max((len(b) for b in beginnings if full.endswith(b)), default=0)
        assert detokenizer.text == full[: len(full) - held]


def test_a_stop_string_may_be_half_characters_apart() -> None:
    ids = [BYTE_LEVEL.token_id(char) for char in _spelt("ab€cd")]
    detokenizer = IncrementalDetokenizer(BYTE_LEVEL, stop=["€c"])
    pushed = [detokenizer.push([token_id]) for token_id in ids if token_id is not None]
    assert pushed == ["a", "b", "", "", "", "", ""]
    assert (detokenizer.text, detokenizer.stop_string) == ("ab", "€c")


def _spelt(text: str) -> str:
    """In the byte alphabet."""
    letters = {byte: char for char, byte in byte_alphabet().items()}
    return "".join(letters[byte] for byte in text.encode())
