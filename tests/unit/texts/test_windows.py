"""Texts become windows: what each protocol cuts, replaces, drops and scores."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from crumb.errors import TextError, UsageError
from crumb.texts.sources import Text
from crumb.texts.windows import cut_windows

BEGIN = 1


def letters(text: str) -> list[int]:
    """A tokenizer without special tokens: one token a character."""
    return [ord(character) for character in text]


def begun(text: str) -> list[int]:
    """A tokenizer that starts texts with its begin token, as LLaMA's does."""
    return [BEGIN, *letters(text)]


ALPHABET = Text("alphabet", "abcdefghijklmnopqrstuvwxyz")


def test_gptq_windows_follow_each_other_and_drop_the_tail() -> None:
    windows = cut_windows(ALPHABET, letters, length=8, begin_token=BEGIN)
    assert windows.tokens.tolist() == [
        letters(part) for part in ("abcdefgh", "ijklmnop", "qrstuvwx")
    ]
    assert windows.tokens.dtype == np.int64
    assert (windows.protocol, windows.text, windows.length) == ("gptq", "alphabet", 8)
    assert windows.text_sha256 == hashlib.sha256(ALPHABET.text.encode()).hexdigest()


def test_gptq_keeps_the_one_begin_token_that_the_tokenizer_adds() -> None:
    windows = cut_windows(ALPHABET, begun, length=9, begin_token=BEGIN)
    assert windows.tokens.tolist() == [
        begun("abcdefgh"),
        letters("ijklmnopq"),
        letters("rstuvwxyz"),
    ]


def test_gptq_scores_all_tokens_of_a_window_but_the_first() -> None:
    windows = cut_windows(ALPHABET, letters, length=8)
    assert windows.first_scored == 1
    assert windows.scored_tokens == 3 * 7


def test_llama_cpp_puts_the_begin_token_in_place_of_each_first_token() -> None:
    windows = cut_windows(ALPHABET, begun, protocol="llama.cpp", length=9, begin_token=BEGIN)
    assert windows.tokens.tolist() == [begun("abcdefgh"), begun("jklmnopq"), begun("stuvwxyz")]


def test_llama_cpp_leaves_windows_alone_where_the_tokenizer_adds_nothing() -> None:
    windows = cut_windows(ALPHABET, letters, protocol="llama.cpp", length=13, begin_token=BEGIN)
    assert windows.tokens.tolist() == [letters("abcdefghijklm"), letters("nopqrstuvwxyz")]


@pytest.mark.parametrize(("length", "first", "scored"), [(512, 257, 255), (9, 5, 4), (3, 2, 1)])
def test_llama_cpp_scores_what_its_tool_counts(length: int, first: int, scored: int) -> None:
    """Its tool adds n_ctx - 1 - n_ctx/2 tokens to its count for every window."""
    text = Text("a", "a" * 2 * length)
    windows = cut_windows(text, letters, protocol="llama.cpp", length=length)
    assert windows.first_scored == first
    assert windows.scored_tokens == 2 * scored == 2 * (length - 1 - length // 2)


def test_each_protocol_has_its_published_length() -> None:
    text = Text("a", "a" * 2048)
    assert cut_windows(text, letters).tokens.shape == (1, 2048)
    assert cut_windows(text, letters, protocol="llama.cpp").tokens.shape == (4, 512)


def test_a_limit_keeps_the_first_windows() -> None:
    windows = cut_windows(ALPHABET, letters, length=8, limit=2)
    assert windows.tokens.tolist() == [letters("abcdefgh"), letters("ijklmnop")]
    assert len(cut_windows(ALPHABET, letters, length=8, limit=99).tokens) == 3


def test_a_data_set_that_keeps_some_tokens_is_cut_before_the_windows() -> None:
    text = Text("alphabet", ALPHABET.text, tokens_kept=17)
    assert len(cut_windows(text, letters, length=8).tokens) == 2


def test_a_text_shorter_than_one_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        TextError, match=r"at least 27 tokens, found 26 tokens.*at most 26"
    ) as caught:
        cut_windows(ALPHABET, letters, length=27)
    assert caught.value.where == "alphabet"
    assert cut_windows(ALPHABET, letters, length=26).tokens.shape == (1, 26)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocol": "llamacpp"}, "gptq or llama.cpp"),
        ({"length": 1}, "nothing to score"),
        ({"length": 0}, "nothing to score"),
        ({"length": -5}, "nothing to score"),
        ({"length": 2, "protocol": "llama.cpp"}, "nothing to score"),
        ({"limit": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cut_windows(ALPHABET, letters, **settings)  # type: ignore[arg-type]
