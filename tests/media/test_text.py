"""Captions come clean or are rejected; any text whatever has tokens, and the same text always the same ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media.filters import Filters
from mmstream.media.text import PAD, START, Tokenizer, clean, collate, decode, parse_object, train_tokenizer, transform
from mmstream.schema import MAX_JSON_BYTES

CAPTIONS = ["a small red circle above a blue star", "a large blue square", "a red star, and a green heart"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS, 400)


def test_captions_are_composed_stripped_of_control_characters_and_folded():
    assert clean("  cafe\u0301\x00\x07 \t au\r\n\u00a0 lait\x9f ") == "caf\u00e9 au lait"


@pytest.mark.parametrize(
    ("text", "said"), [("", "empty"), (" \n", "empty"), ("\x00\x01", "control"), ("x" * 70_000, "70,000 characters")]
)
def test_nothing_to_say_and_too_much_to_say_are_rejected(text: str, said: str):
    with pytest.raises(Rejected, match=said) as e:
        clean(text)
    assert e.value.reason == Reason.CAPTION


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str):
    try:
        once = clean(text)
    except Rejected:
        return
    assert clean(once) == once and "\x00" not in once and "\n" not in once


def test_tokens_start_with_the_start_token_and_end_in_padding(tokenizer: Tokenizer):
    tokens = tokenizer.tokenize(["a red circle", "", "a large red star above a small blue circle"], 8)
    assert tokens.dtype == np.int32 and tokens.shape == (3, 8)
    assert (tokens[:, 0] == START).all() and (tokens[1, 1:] == PAD).all() and (tokens[2] != PAD).all()
    assert (tokens[0, :4] != PAD).all() and (tokens[0, 4:] == PAD).all()


def test_words_of_the_captions_become_one_token_and_no_text_is_unknown(tokenizer: Tokenizer):
    assert (tokenizer.tokenize(["red circle"], 16) != PAD).sum() == 3
    strange = tokenizer.tokenize(["zebra", "zebrb", "\u6f22", "\u6f23"], 16)
    assert len({row.tobytes() for row in strange}) == 4
    assert (tokenizer.tokenize(["RED Circle"], 16) == tokenizer.tokenize(["red circle"], 16)).all()


@given(st.text())
def test_any_text_has_tokens_within_the_vocabulary(tokenizer: Tokenizer, text: str):
    tokens = tokenizer.tokenize([text], 32)
    assert tokens.min() >= 0 and tokens.max() < tokenizer.vocab_size


def test_the_name_of_a_special_token_in_a_caption_is_only_a_word(tokenizer: Tokenizer):
    assert (tokenizer.tokenize(["<pad>"], 8)[0, 1:3] != PAD).all()


def test_the_same_captions_give_the_same_tokenizer_and_it_reads_back_equal(tokenizer: Tokenizer):
    assert train_tokenizer(CAPTIONS, 400).to_json() == tokenizer.to_json()
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.tokenize(CAPTIONS, 12) == tokenizer.tokenize(CAPTIONS, 12)).all()
    assert again.vocab_size == tokenizer.vocab_size <= 400


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff"])
def test_a_broken_tokenizer_file_is_named(data: bytes):
    with pytest.raises(UsageError, match=r"card/tokenizer\.json: not a tokenizer"):
        Tokenizer.from_json(data, "card/tokenizer.json")


def test_bytes_become_text_or_are_rejected_with_the_place():
    assert decode("caf\u00e9".encode()) == decode(b"\xef\xbb\xbfcaf\xc3\xa9") == "caf\u00e9"
    with pytest.raises(Rejected, match="4 bytes that is no UTF-8: invalid start byte at byte 3") as e:
        decode(b"caf\xff")
    assert e.value.reason == Reason.CAPTION


def test_json_that_would_take_gigabytes_when_parsed_is_not_parsed():
    with pytest.raises(Rejected, match="the limit is 8,388,608") as rejected:
        parse_object('{"a": [' + "[]," * (MAX_JSON_BYTES // 3) + "[]]}")
    assert rejected.value.reason is Reason.METADATA


def test_a_caption_that_is_not_wanted_is_filtered_after_it_was_cleaned():
    filters = Filters(min_words=2)
    assert clean(" two\n words ", filters=filters) == "two words"
    with pytest.raises(Rejected, match="caption of 1 words") as e:
        clean(" \n one \n", filters=filters)
    assert e.value.reason == Reason.FILTERED


def test_one_text_has_the_tokens_of_many_and_a_batch_a_mask(tokenizer: Tokenizer):
    texts = ["a red circle", "", "blue"]
    batch, mask = collate([transform(t, tokenizer, 8) for t in texts])
    assert np.array_equal(batch, tokenizer.tokenize(texts, 8)) and np.array_equal(mask, batch != PAD)
