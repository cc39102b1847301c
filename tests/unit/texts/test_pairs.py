"""Pairs by T5's rule, and pairs of a file: what is left out, what stays, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.errors import TextError, UsageError
from crumb.texts.mixture import ModelReading, draw_calibration
from crumb.texts.pairs import (
    PairMarks,
    PairTokens,
    has_pairs,
    leave_spans_out,
    read_pairs,
    rows_of,
    whole_tokens,
)
from crumb.texts.sources import Text

MARKS = PairMarks(start=0, end=1, sentinels=tuple(range(1099, 999, -1)))


def texts(count: int, length: int) -> Any:
    return np.random.default_rng(length).integers(10, 900, (count, length))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 900), seed=st.integers(0, 99))
def test_a_text_is_put_together_again_from_its_pair(length: int, seed: int) -> None:
    whole = texts(3, length)
    rows = leave_spans_out(whole, MARKS, np.random.default_rng(seed))
    for text, source, row in zip(whole, rows.sources, rows.tokens, strict=True):
        target = row[rows.source_tokens + 1 :]
        assert row[rows.source_tokens] == MARKS.start
        assert source[-1] == target[-1] == MARKS.end
        spans: dict[int, list[int]] = {}
        for token in target[:-1].tolist():
            if token in MARKS.sentinels:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        assert list(spans) == list(MARKS.sentinels[: len(spans)])
        assert all(spans.values())
        again: list[int] = []
        for token in source[:-1].tolist():
            again += spans.get(token, [token])
        assert again == text.tolist()


def test_a_text_of_568_tokens_becomes_512_and_114_as_t5_was_trained() -> None:
    """Its own settings: inputs of 512 tokens and targets of 114, from 568 of a text."""
    rows = leave_spans_out(texts(40, 568), MARKS, np.random.default_rng(0))
    assert rows.sources.shape == (40, 512)
    assert rows.inputs.shape == (40, 114)
    left_out = (rows.tokens[:, 513:-1] < 1000).sum(axis=1)
    assert set(left_out.tolist()) == {85}
    begins = {int((row >= 1000).argmax()) for row in rows.sources}
    assert len(begins) > 5, "spans lie elsewhere in every text"


@pytest.mark.parametrize("row", [8, 9, 64, 512, 627])
def test_a_row_holds_the_longest_text_that_fits(row: int) -> None:
    length = whole_tokens(row)
    assert leave_spans_out(texts(1, length), MARKS, np.random.default_rng(0)).tokens.shape[1] <= row
    longer = leave_spans_out(texts(1, length + 1), MARKS, np.random.default_rng(0))
    assert longer.tokens.shape[1] > row


def test_too_short_rows_and_too_few_marks_are_refused() -> None:
    with pytest.raises(UsageError, match="too few tokens"):
        whole_tokens(5)
    few = PairMarks(0, 1, MARKS.sentinels[:2])
    with pytest.raises(UsageError, match=r"more spans.*at least 3 tokens.*found 2"):
        leave_spans_out(texts(1, 60), few, np.random.default_rng(0))


PAIRS = [("what is it", "a sea"), ("who", "a man"), ("and now", "no sea")]


def lines(*more: str) -> Text:
    made = [json.dumps({"source": source, "target": target}) for source, target in PAIRS]
    return Text("pairs.jsonl", "\n\n".join([*made, *more]) + "\n")


def encode(text: str) -> list[int]:
    return [10 + len(word) for word in text.split()] + [1]


def test_pairs_of_one_shape_are_rows_of_one_group() -> None:
    assert has_pairs(lines())
    assert not has_pairs(Text("a", "a text"))
    assert not has_pairs(Text("a", '{"text": "no pair"}'))
    tokens = rows_of(read_pairs(lines(), encode), MARKS, 99)
    assert [(each.sources.shape, each.inputs.shape) for each in tokens.groups] == [
        ((1, 2), (1, 3)),
        ((1, 3), (1, 3)),
        ((1, 4), (1, 3)),
    ]
    assert tokens.size == 9 + 9
    assert tokens.shape == (3, 6)
    assert tokens.groups[2].tokens.tolist() == [[14, 12, 12, 1, 0, 11, 13, 1]]
    cut = rows_of(read_pairs(lines(), encode), MARKS, 2)
    assert [len(each.tokens) for each in cut.groups] == [3]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '["source"]',
        '{"source": "a"}',
        '{"source": 1, "target": "b"}',
        '{"source": "", "target": "b"}',
    ],
)
def test_a_line_that_is_no_pair_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(TextError, match=r"pairs.jsonl: line 7.*expected \{"):
        read_pairs(lines(line), encode)


def test_a_calibration_is_drawn_as_pairs_the_same_for_the_same_seed(tmp_path: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines().text)
    reader = ModelReading(
        lambda text: [10 + len(word) for word in text.split()], marks=MARKS, encode_pair=encode
    )
    spec = f"excerpt-calibration:6,{path}:2"
    one, two, other = (
        draw_calibration(spec, reader, sequences=8, length=64, seed=seed) for seed in (0, 0, 1)
    )
    assert isinstance(one.rows, PairTokens)
    assert one.sha256() == two.sha256() != other.sha256()
    assert [each.sequences for each in one.sources] == [6, 2]
    assert one.rows.groups[0].tokens.shape[0] == 6
    assert one.rows.groups[0].tokens.shape[1] <= 64
    assert sum(len(each.tokens) for each in one.rows.groups) == 8
    with pytest.raises(UsageError, match="writes no text of its own"):
        draw_calibration("self", reader, sequences=8, length=64, seed=0)
