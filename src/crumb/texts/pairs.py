"""Pairs for models that read a source and write a target: spans left out of a text, or a file's.

In: sequences of tokens and the marks of a tokenizer; or JSON Lines of {"source", "target"}. Out:
rows of one shape: the source, the token before every answer, the target.
Refuses sequences that are too short, more spans than marks, and lines that are no pair.
Source: T5 (arXiv 1910.10683, section 3.1.4): 15 % of the tokens, in spans of 3 on average; the
lengths of the spans are drawn as its code draws them, so that sources and targets have one length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.errors import TextError, UsageError
from crumb.texts.sources import Text
from crumb.texts.windows import Encode

Tokens = NDArray[np.int64]

NOISE_SHARE = 0.15
SPAN_TOKENS = 3.0

LEAST_TOKENS = 8
"""Of a row of a span that is left out: what it is left out of, marks and ends."""


@dataclass(frozen=True)
class PairMarks:
    """Tokens that pairs are made with."""

    start: int  # before every answer
    end: int  # behind every source and target
    sentinels: tuple[int, ...]  # for the first span that is left out, the second, ...


@dataclass(frozen=True, eq=False)
class PairRows:
    """Pairs whose sources have one length, and whose targets have one."""

    tokens: Tokens  # (pairs, source + 1 + target)
    source_tokens: int

    @property
    def sources(self) -> Tokens:
        """(pairs, source)."""
        return self.tokens[:, : self.source_tokens]

    @property
    def inputs(self) -> Tokens:
        """What a decoder reads to predict the targets, (pairs, target)."""
        return self.tokens[:, self.source_tokens : -1]

    @property
    def targets(self) -> Tokens:
        """What it is to predict, (pairs, target)."""
        return self.tokens[:, self.source_tokens + 1 :]


@dataclass(frozen=True, eq=False)
class PairTokens:
    """Pairs of any lengths, those of equal ones together."""

    groups: tuple[PairRows, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Pairs, and the tokens of one on average."""
        pairs = sum(len(each.tokens) for each in self.groups)
        return pairs, -(-self.size // max(pairs, 1))

    @property
    def size(self) -> int:
        """Tokens that run through a model, those that are read and those that are written."""
        return sum(each.sources.size + each.inputs.size for each in self.groups)

    def tobytes(self) -> bytes:
        """All rows as little-endian 64-bit integers."""
        return b"".join(each.tokens.astype("<i8").tobytes() for each in self.groups)


def whole_tokens(row_tokens: int) -> int:
    """The longest text whose pair fits a row of so many tokens. Raises: UsageError."""
    length = row_tokens
    while length > 1:
        spans = _counts(length)[1]
        if length + 2 * spans + 3 <= row_tokens:
            return length
        length -= 1
    raise UsageError(
        "too few tokens for a text with a span left out",
        expected=f"at least {LEAST_TOKENS}",
        found=row_tokens,
    )


def _counts(length: int) -> tuple[int, int]:
    """Tokens that are left out of so many, and their spans."""
    noise = min(max(round(length * NOISE_SHARE), 1), length - 1)
    return noise, max(min(round(noise / SPAN_TOKENS), length - noise), 1)


def leave_spans_out(texts: Tokens, marks: PairMarks, generator: np.random.Generator) -> PairRows:
    """A pair of each text. Shapes: (texts, length). Raises: UsageError."""
    spans = _counts(texts.shape[1])[1]
    if spans > len(marks.sentinels):
        raise UsageError(
            "more spans are left out than the tokenizer has marks for",
            expected=f"at least {spans} tokens such as <extra_id_0>",
            found=len(marks.sentinels),
            do="Ask for shorter sequences, or give a file of pairs",
        )
    pairs = [_pair(row.tolist(), marks, generator) for row in texts]
    rows = [[*source, marks.start, *target] for source, target in pairs]
    return PairRows(np.asarray(rows, np.int64), len(pairs[0][0]))


def _pair(
    tokens: list[int], marks: PairMarks, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    noise, spans = _counts(len(tokens))
    left_out = _segments(noise, spans, generator)
    stays = _segments(len(tokens) - noise, spans, generator)
    source, target, place = list[int](), list[int](), 0
    for sentinel, before, span in zip(marks.sentinels, stays, left_out, strict=False):
        source += [*tokens[place : place + before], sentinel]
        place += before
        target += [sentinel, *tokens[place : place + span]]
        place += span
    return [*source, marks.end], [*target, marks.end]


def _segments(items: int, segments: int, generator: np.random.Generator) -> list[int]:
    """Lengths of segments of at least 1 that make up so many items, all ways alike."""
    begins = np.arange(items - 1) < segments - 1
    generator.shuffle(begins)
    places = np.concatenate([[0], np.flatnonzero(begins) + 1, [items]])
    return [int(length) for length in np.diff(places)]


def has_pairs(text: Text) -> bool:
    """Whether a text is JSON Lines of pairs: its first line says so."""
    first = text.text.lstrip().partition("\n")[0]
    try:
        line = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(line, dict) and {"source", "target"} <= line.keys()


def read_pairs(text: Text, encode: Encode) -> list[tuple[list[int], list[int]]]:
    """Tokens of all pairs of a text; `encode` ends each. Raises: TextError."""
    pairs = []
    for number, line in enumerate(text.text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
            source, target = pair["source"], pair["target"]
        except (ValueError, RecursionError, TypeError, KeyError):
            source = target = None
        if not isinstance(source, str) or not isinstance(target, str) or not source or not target:
            raise TextError(
                "a line is no pair",
                where=f"{text.name}: line {number}",
                expected='{"source": "a text", "target": "another"}',
                found=line[:80],
            )
        pairs.append((encode(source), encode(target)))
    return pairs


def rows_of(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]], marks: PairMarks, most_tokens: int
) -> PairTokens:
    """Pairs as rows, each half cut at so many tokens, the decoder's start counted."""
    by_shape: dict[tuple[int, int], list[list[int]]] = {}
    for source, target in pairs:
        read, written = list(source[:most_tokens]), list(target[:most_tokens])
        by_shape.setdefault((len(read), len(written)), []).append([*read, marks.start, *written])
    groups = (
        PairRows(np.asarray(rows, np.int64), lengths[0])
        for lengths, rows in sorted(by_shape.items())
    )
    return PairTokens(tuple(groups))
