"""A calibration spec -> CalibrationTokens: sequences drawn from one text or a mixture of them.

In: "embedded:48,code.txt:16" (names and relative weights), what a model does with texts, a seed.
Out: sequences in the order of the sources, the same for the same seed, texts and model.
`embedded` is all the texts of the package, `self` what the model writes itself.
Refuses specs that name nothing, name a text twice or weigh it wrongly, and texts that are too
short. Source: GPTQ (arXiv 2210.17323) draws sequences at random offsets of one stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from crumb.errors import TextError, UsageError
from crumb.texts.dialogues import Render, parse_dialogues, render_plainly
from crumb.texts.hub_texts import Use
from crumb.texts.pairs import (
    PairMarks,
    PairRows,
    PairTokens,
    has_pairs,
    leave_spans_out,
    read_pairs,
    rows_of,
    whole_tokens,
)
from crumb.texts.sources import Text, is_known, path_exists, read_text
from crumb.texts.windows import Encode, token_stream

Tokens = NDArray[np.int64]
Write = Callable[[int, int, int], Tokens]
"""(sequences, length, seed) -> what the model writes itself, (sequences, length)."""

OWN = "self"
"""The word for what the model writes itself."""

DIALOGUE = "embedded-dialogue"

GROUPS: Mapping[str, Mapping[str, int]] = {
    "embedded": {
        "embedded-encyclopedia": 14,
        "embedded-novels": 12,
        "embedded-news": 8,
        "embedded-code": 10,
        "embedded-mathematics": 6,
        "embedded-languages": 6,
        DIALOGUE: 8,
    }
}
"""Words for several texts, and how they share the sequences (docs/quality.md)."""

SEQUENCES, LENGTH = 64, 512
"""Sequences and their length in tokens, unless others are asked for."""

LONG_CHARACTERS = 4_000_000
"""Of a longer text only the places that are drawn are tokenized."""

CHARACTERS_PER_TOKEN = 16
"""As many are read first for each token of such a place."""


@dataclass(frozen=True)
class MixturePart:
    """One source of a spec."""

    name: str
    weight: Fraction  # relative to the other weights


@dataclass(frozen=True)
class DrawnSource:
    """One source as it was drawn."""

    name: str
    sequences: int
    sha256: str  # of the text in UTF-8; of what the model wrote itself, as of all tokens


@dataclass(frozen=True, eq=False)
class CalibrationTokens:
    """What a model is calibrated on."""

    tokens: NDArray[np.int64]  # (sequences, length)
    sources: tuple[DrawnSource, ...]  # in the order of the sequences
    seed: int
    pairs: PairTokens | None = None  # in place of the tokens, for a model that reads a source

    @property
    def rows(self) -> NDArray[np.int64] | PairTokens:
        """What runs through the model."""
        return self.tokens if self.pairs is None else self.pairs

    def sha256(self) -> str:
        """Of the tokens as little-endian 64-bit integers."""
        if self.pairs is not None:
            return hashlib.sha256(self.pairs.tobytes()).hexdigest()
        return _sha256(self.tokens)


@dataclass(frozen=True)
class ModelReading:
    """What a model does with texts."""

    encode: Encode
    render: Render = render_plainly  # writes a chat as the model reads it
    write: Write | None = None  # None: this model writes no text
    marks: PairMarks | None = None  # of a model that reads a source: it is calibrated on pairs
    encode_pair: Encode | None = None  # the texts of its pairs, ended


def _sha256(tokens: Tokens) -> str:
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()


def parse_mixture(spec: str) -> tuple[MixturePart, ...]:
    """The parts of "name[:weight],...". Raises: UsageError.

    What follows the last colon of a part is its weight, unless the whole part is a path that is
    there and what precedes the colon is no name of a table.
    """
    parts = [_parse_part(part.strip()) for part in spec.split(",") if part.strip()]
    if not parts:
        raise UsageError(
            "no text to calibrate on", expected="wikitext2, or wikitext2:64,code.txt:32"
        )
    _refuse_twice([part.name for part in parts])
    return tuple(parts)


def _refuse_twice(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError("a calibration text is named twice", where=name)


def _parse_part(part: str) -> MixturePart:
    name, colon, weight = part.rpartition(":")
    if not colon or (not _is_word(name) and path_exists(part)):
        return MixturePart(part, Fraction(1))
    try:
        # by way of float: a Fraction of "1e999999999" would fill the memory
        value = Fraction(repr(float(weight)))
    except ValueError:
        value = Fraction(0)
    if value <= 0 or not name:
        raise UsageError(
            "a weight must be a number above 0",
            where=part,
            expected="name:weight, as in wikitext2:64",
            found=repr(weight[:80]),
        )
    return MixturePart(name, value)


def _is_word(name: str) -> bool:
    return name == OWN or name in GROUPS or is_known(name)


def share_sequences(parts: tuple[MixturePart, ...], sequences: int) -> tuple[int, ...]:
    """Sequences of each part: by weight, largest remainder first, at least one each.

    Raises: UsageError when there are more parts than sequences.
    """
    if len(parts) > sequences:
        raise UsageError(
            "fewer calibration sequences than texts",
            expected=f"at least {len(parts)} sequences",
            found=sequences,
        )
    shared = dict.fromkeys(range(len(parts)), 1)
    rest = set(shared)
    while True:  # whoever would get less than one gets one; the others share what remains
        total = sum(parts[index].weight for index in rest)
        remaining = sequences - (len(parts) - len(rest))
        quotas = {index: parts[index].weight * remaining / total for index in rest}
        small = {index for index in rest if quotas[index] < 1}
        if not small:
            break
        rest -= small
    shared |= {index: int(quotas[index]) for index in rest}
    order = sorted(rest, key=lambda index: (int(quotas[index]) - quotas[index], index))
    for index in order[: sequences - sum(shared.values())]:
        shared[index] += 1
    return tuple(shared.values())


def shares_of(spec: str, sequences: int) -> list[tuple[str, int]]:
    """Texts and their sequences, `embedded` taken apart. Raises: UsageError."""
    parts = parse_mixture(spec)
    shares: list[tuple[str, int]] = []
    for part, count in zip(parts, share_sequences(parts, sequences), strict=True):
        inner = GROUPS.get(part.name, {part.name: 1})
        shares += _by_weight(inner, count)
    _refuse_twice([name for name, _ in shares])
    return shares


def _by_weight(weights: Mapping[str, int], count: int) -> list[tuple[str, int]]:
    """Largest remainder first; what would get nothing is left out."""
    total = sum(weights.values())
    shared = {name: weight * count // total for name, weight in weights.items()}
    order = sorted(weights, key=lambda name: -(weights[name] * count % total))
    for name in order[: count - sum(shared.values())]:
        shared[name] += 1
    return [(name, share) for name, share in shared.items() if share]


def check_numbers(sequences: int, length: int, seed: int) -> None:
    """Refuse numbers that no draw can have. Raises: UsageError."""
    for name, value, least in (
        ("sequences", sequences, 1),
        ("length", length, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UsageError(f"calibration {name} must be at least {least}", found=value)


def draw_calibration(
    spec: str,
    reader: ModelReading,
    *,
    sequences: int = SEQUENCES,
    length: int = LENGTH,
    seed: int = 0,
) -> CalibrationTokens:
    """Calibration sequences for a spec. Shapes: (sequences, length).

    Raises: UsageError for settings that cannot be, TextError for a text that cannot be read or is
    shorter than one sequence.
    """
    check_numbers(sequences, length, seed)
    if reader.marks is not None:
        return _draw_pairs(spec, reader, reader.marks, sequences, length, seed)
    generator = np.random.default_rng(seed)
    drawn: list[Tokens] = []
    sources: list[DrawnSource] = []
    for name, count in shares_of(spec, sequences):
        if name == OWN:
            drawn.append(_written(reader, count, length, seed))
            sources.append(DrawnSource(name, count, _sha256(drawn[-1])))
            continue
        text = _read(name, reader)
        drawn.append(_draw(text, reader.encode, count, length, generator))
        sources.append(DrawnSource(name, count, text.sha256))
    return CalibrationTokens(np.concatenate(drawn), tuple(sources), seed)


def _read(name: str, reader: ModelReading) -> Text:
    text = read_text(name, Use.CALIBRATION)
    if name != DIALOGUE:
        return text
    chats = parse_dialogues(text.text, name)
    return replace(text, text="".join(map(reader.render, chats)))


def _draw_pairs(
    spec: str, reader: ModelReading, marks: PairMarks, sequences: int, length: int, seed: int
) -> CalibrationTokens:
    """Pairs of a file, or spans left out of a text; `length` is that of a pair's row at most."""
    generator = np.random.default_rng(seed)
    groups: list[PairRows] = []
    sources: list[DrawnSource] = []
    for name, count in shares_of(spec, sequences):
        if name == OWN:
            raise UsageError("this model writes no text of its own", where=OWN, do="Name a text")
        text = _read(name, reader)
        if has_pairs(text):
            pairs = read_pairs(text, reader.encode_pair or reader.encode)
            chosen = np.sort(generator.permutation(len(pairs))[:count])
            groups += rows_of([pairs[index] for index in chosen], marks, length).groups
            count = len(chosen)
        else:
            texts = _draw(text, reader.encode, count, whole_tokens(length), generator)
            groups.append(leave_spans_out(texts, marks, generator))
        sources.append(DrawnSource(name, count, text.sha256))
    none = np.zeros((0, length), np.int64)
    return CalibrationTokens(none, tuple(sources), seed, PairTokens(tuple(groups)))


def _written(reader: ModelReading, count: int, length: int, seed: int) -> Tokens:
    if reader.write is None:
        raise UsageError("this model writes no text of its own", where=OWN, do="Name a text")
    return reader.write(count, length, seed)


def _draw(
    text: Text, encode: Encode, count: int, length: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Sequences at uniform offsets of a text's tokens; they may overlap."""
    if len(text.text) > LONG_CHARACTERS:
        return _draw_places(text, encode, count, length, generator)
    stream = token_stream(text, encode)
    if len(stream) < length:
        raise TextError(
            "this text is shorter than one calibration sequence",
            where=text.name,
            expected=f"at least {length} tokens",
            found=f"{len(stream)} tokens",
            do=f"Give a longer text, or sequences of at most {len(stream)} tokens",
        )
    offsets = generator.integers(0, len(stream) - length, size=count, endpoint=True)
    chosen: NDArray[np.int64] = stream[offsets[:, None] + np.arange(length)]
    return chosen


def _draw_places(
    text: Text, encode: Encode, count: int, length: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Sequences that begin with a word behind a uniform character of a long text."""
    added = len(encode(""))  # special tokens, of no interest within a text
    reach = min(CHARACTERS_PER_TOKEN * length, len(text.text))
    rows = []
    for begin in generator.integers(0, len(text.text) - reach, size=count, endpoint=True).tolist():
        end = begin
        tokens: list[int] = []
        while len(tokens) <= length and end < len(text.text):  # the last may be a part of a word
            end += reach
            words = text.text[begin:end].split(maxsplit=1) if begin else ["", text.text[:end]]
            tokens = encode(words[-1])[added:]
        if len(tokens) < length:
            raise TextError(
                "too few tokens follow a place of this text",
                where=text.name,
                expected=f"{length} tokens behind character {begin}",
                found=f"{len(tokens)} tokens",
                do="Give another seed, or shorter sequences",
            )
        rows.append(tokens[:length])
    return np.asarray(rows, np.int64)
