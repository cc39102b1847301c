"""Calibration specs become sequences: what is parsed, shared, drawn and refused."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crumb.errors import TextError, UsageError
from crumb.texts import mixture
from crumb.texts.mixture import (
    GROUPS,
    CalibrationTokens,
    MixturePart,
    ModelReading,
    draw_calibration,
    parse_mixture,
    share_sequences,
    shares_of,
)
from crumb.texts.sources import DOMAINS


def letters(text: str) -> list[int]:
    """A tokenizer without special tokens: one token a character."""
    return [ord(character) for character in text]


LETTERS = ModelReading(letters)


def parts(*weights: float | Fraction) -> tuple[MixturePart, ...]:
    return tuple(MixturePart(str(index), Fraction(w)) for index, w in enumerate(weights))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("wikitext2", [("wikitext2", 1)]),
        ("wikitext2:64,code.txt:32", [("wikitext2", 64), ("code.txt", 32)]),
        (" a , b:2 ,", [("a", 1), ("b", 2)]),
        ("a:0.5,b:1e2", [("a", Fraction(1, 2)), ("b", 100)]),
        ("C:/texts/a.txt:3", [("C:/texts/a.txt", 3)]),
    ],
)
def test_a_spec_is_names_with_weights(spec: str, expected: list[tuple[str, Fraction]]) -> None:
    assert [(part.name, part.weight) for part in parse_mixture(spec)] == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "no text"),
        (" , ", "no text"),
        ("a:0", "above 0"),
        ("a:-1", "above 0"),
        ("a:", "above 0"),
        ("a:many", "above 0"),
        ("a:nan", "above 0"),
        ("a:inf", "above 0"),
        ("a:1e999999999", "above 0"),
        ("a:1/2", "above 0"),
        (":5", "above 0"),
        ("a:2,b,a:3", "twice"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_mixture(spec)


def test_a_file_whose_name_ends_like_a_weight_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_mixture("notes:12") == (MixturePart("notes", Fraction(12)),)
    Path("notes:12").write_text("x")
    assert parse_mixture("notes:12") == (MixturePart("notes:12", Fraction(1)),)
    assert parse_mixture("notes:12:3") == (MixturePart("notes:12", Fraction(3)),)


def test_no_file_can_stand_for_a_known_name_with_its_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wikitext2:64").write_text("x")
    assert parse_mixture("wikitext2:64") == (MixturePart("wikitext2", Fraction(64)),)


@pytest.mark.parametrize(
    ("weights", "sequences", "expected"),
    [
        ((1,), 64, (64,)),
        ((64, 32), 96, (64, 32)),
        ((64, 32), 64, (43, 21)),  # 42.67 and 21.33
        ((1, 1, 1), 64, (22, 21, 21)),  # equal remainders: the first named
        ((1000, 1), 10, (9, 1)),
        ((1, 1000, 1), 3, (1, 1, 1)),
        ((0.1, 0.2, 0.3), 6, (1, 2, 3)),
    ],
)
def test_sequences_are_shared_by_weight(
    weights: tuple[float, ...], sequences: int, expected: tuple[int, ...]
) -> None:
    given_weights = parts(*(Fraction(str(weight)) for weight in weights))
    assert share_sequences(given_weights, sequences) == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.integers(0, 200))
def test_every_share_is_at_least_one_and_they_make_the_whole(
    weights: list[int], beyond: int
) -> None:
    sequences = len(weights) + beyond
    shared = share_sequences(parts(*weights), sequences)
    assert sum(shared) == sequences
    assert min(shared) >= 1
    least = dict.fromkeys(weights, sequences)
    most = dict.fromkeys(weights, 0)
    for weight, count in zip(weights, shared, strict=True):
        least[weight], most[weight] = min(least[weight], count), max(most[weight], count)
    for weight, heavier in pairwise(sorted(least)):  # a larger weight never gets less
        assert most[weight] <= least[heavier]


def test_more_texts_than_sequences_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 3 sequences, found 2"):
        share_sequences(parts(1, 1, 1), 2)


@pytest.fixture
def two_texts(tmp_path: Path) -> str:
    """A spec of a text of lower-case and a text of upper-case letters."""
    lower, upper = tmp_path / "lower.txt", tmp_path / "upper.txt"
    lower.write_text("".join(chr(ord("a") + index % 26) for index in range(1000)))
    upper.write_text("".join(chr(ord("A") + index % 26) for index in range(1000)))
    return f"{lower}:2,{upper}:1"


def test_sequences_are_slices_of_their_text_in_the_order_of_the_spec(two_texts: str) -> None:
    drawn = draw_calibration(two_texts, LETTERS, sequences=9, length=40)
    assert drawn.tokens.shape == (9, 40)
    assert drawn.tokens.dtype == np.int64
    assert [source.sequences for source in drawn.sources] == [6, 3]
    rows = ["".join(map(chr, row)) for row in drawn.tokens]
    assert [row.islower() for row in rows] == [True] * 6 + [False] * 3
    for row in rows:  # each letter follows the one before it, so the row is one slice
        assert all((ord(b) - ord(a)) % 26 == 1 for a, b in pairwise(row))


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(two_texts: str) -> None:
    first, again, other = (
        draw_calibration(two_texts, LETTERS, sequences=9, length=40, seed=seed)
        for seed in (5, 5, 6)
    )
    assert first.sha256() == again.sha256()
    assert first.sources == again.sources == other.sources
    assert first.sha256() != other.sha256()


def test_the_drawn_tokens_are_the_same_on_every_machine() -> None:
    """Golden: a change of this hash makes calibrations of earlier versions unrepeatable."""
    drawn = draw_calibration("excerpt-calibration", LETTERS, sequences=8, length=128, seed=1)
    assert drawn.sha256() == "576ba0d89c31c9bf324bb9691a3ac96f38742e28b98043fa230e76d929ca7a1a"


def test_all_offsets_can_be_drawn_the_first_and_the_last_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("abcd")
    drawn = draw_calibration(str(tmp_path / "x"), LETTERS, sequences=50, length=3)
    # Each of the two offsets is missed by 50 fair draws with probability 2^-50.
    assert {"".join(map(chr, row)) for row in drawn.tokens} == {"abc", "bcd"}


def test_of_a_long_text_only_the_places_that_are_drawn_are_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"word{index}" for index in range(20_000)]
    (tmp_path / "x").write_text(" ".join(words))
    monkeypatch.setattr(mixture, "LONG_CHARACTERS", 1000)
    read = []

    def numbered(text: str) -> list[int]:
        read.append(len(text))
        return [-1, *(int(word.removeprefix("word")) for word in text.split()[:-1])]

    drawn = draw_calibration(str(tmp_path / "x"), ModelReading(numbered), sequences=7, length=30)
    assert drawn.tokens.shape == (7, 30)
    assert drawn.tokens.min() >= 0
    assert (np.diff(drawn.tokens, axis=1) == 1).all()  # each is one slice of the text
    assert len(set(drawn.tokens[:, 0])) == 7
    assert sum(read) < len(" ".join(words)) / 5
    again = draw_calibration(str(tmp_path / "x"), ModelReading(numbered), sequences=7, length=30)
    assert again.sha256() == drawn.sha256()


def test_a_text_shorter_than_one_sequence_is_refused_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("abc")
    with pytest.raises(TextError, match=r"at least 4 tokens, found 3 tokens.*at most 3"):
        draw_calibration(str(tmp_path / "x"), LETTERS, length=4)
    assert draw_calibration(str(tmp_path / "x"), LETTERS, length=3).tokens.shape == (64, 3)


@pytest.mark.parametrize("setting", [{"sequences": 0}, {"length": 0}, {"seed": -1}])
def test_numbers_that_cannot_be_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be at least"):
        draw_calibration("excerpt-calibration", LETTERS, **setting)  # type: ignore[arg-type]


def test_embedded_is_a_word_for_all_domains_each_with_its_share() -> None:
    assert set(GROUPS["embedded"]) == set(DOMAINS)
    assert shares_of("embedded", 64) == list(GROUPS["embedded"].items())
    halves = dict(shares_of("embedded:32,x:32", 64))
    assert halves.pop("x") == sum(halves.values()) == 32
    assert min(halves.values()) >= 1


def test_few_sequences_go_to_the_domains_with_the_largest_shares() -> None:
    few = dict(shares_of("embedded", 3))
    largest = sorted(GROUPS["embedded"], key=lambda name: -GROUPS["embedded"][name])
    assert few == dict.fromkeys(largest[:3], 1)


def test_a_domain_that_embedded_has_already_is_named_twice() -> None:
    with pytest.raises(UsageError, match="twice"):
        shares_of("embedded:40,embedded-code:24", 64)


def test_dialogues_are_drawn_as_the_model_reads_its_chats() -> None:
    def render(messages: Sequence[dict[str, str]]) -> str:
        return "".join(f"<{each['role']}>{each['content']}<end>" for each in messages)

    drawn = draw_calibration(
        "embedded-dialogue", ModelReading(letters, render), sequences=8, length=2000
    )
    text = "".join(map(chr, drawn.tokens.ravel()))
    assert text.count("<assistant>") > 8
    assert "assistant: " not in text
    plain = draw_calibration("embedded-dialogue", LETTERS, sequences=8, length=2000)
    assert "assistant: " in "".join(map(chr, plain.tokens.ravel()))


def test_self_is_what_the_model_writes_and_its_source_has_the_hash_of_the_tokens() -> None:
    def write(sequences: int, length: int, seed: int) -> NDArray[np.int64]:
        return np.full((sequences, length), seed)

    drawn = draw_calibration(
        "self:1,excerpt-calibration:3",
        ModelReading(letters, write=write),
        sequences=8,
        length=5,
        seed=9,
    )
    assert (drawn.tokens[:2] == 9).all()
    assert [(each.name, each.sequences) for each in drawn.sources] == [
        ("self", 2),
        ("excerpt-calibration", 6),
    ]
    assert drawn.sources[0].sha256 == CalibrationTokens(drawn.tokens[:2], (), 9).sha256()


def test_a_model_that_writes_nothing_is_not_calibrated_on_it() -> None:
    with pytest.raises(UsageError, match="writes no text of its own"):
        draw_calibration("self", LETTERS, sequences=2, length=5)
