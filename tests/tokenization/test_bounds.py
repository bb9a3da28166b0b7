from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from vocabularies import byte_level, sentencepiece, wordpiece

from core.tokenization import Tokenizer
from core.tokenization.bounds import NFC_MAX_SHRINK, max_token_chars

TEXTS = st.text(st.one_of(st.sampled_from("helo \u1f82"), st.characters(exclude_categories=["Cs"])), min_size=1)


def test_no_character_decomposes_further() -> None:
    longest = max(len(unicodedata.normalize("NFD", chr(code))) for code in range(0x110000))
    assert longest == NFC_MAX_SHRINK


@given(text=TEXTS)
def test_no_text_has_fewer_tokens_than_the_bound_allows(text: str) -> None:
    nfc = byte_level()
    nfc.backend.normalizer = normalizers.NFC()
    for tokenizer in (byte_level(), sentencepiece(), nfc):
        longest = tokenizer.max_token_chars
        assert longest is not None
        for form in (text, unicodedata.normalize("NFD", text)):
            assert len(tokenizer.encode(form, add_special_tokens=False)) * longest >= len(form)


def test_the_demo_has_a_bound(demo: Tokenizer) -> None:
    assert demo.max_token_chars == max(map(len, demo.backend.get_vocab()))


def test_no_bound_where_text_can_vanish() -> None:
    assert wordpiece().max_token_chars is None
    stripping = byte_level().backend
    stripping.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    assert max_token_chars(stripping) is None
    removing = byte_level().backend
    removing.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()])
    assert max_token_chars(removing) is None
    swallowing = byte_level().backend
    swallowing.add_special_tokens([AddedToken("<x>", rstrip=True)])
    assert max_token_chars(swallowing) is None
