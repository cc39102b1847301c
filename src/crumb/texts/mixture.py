"""A calibration spec -> CalibrationTokens: sequences drawn from one text or a mixture of them.

In: "wikitext2:64,code.txt:32" (names and relative weights), a tokenizer's encode, a seed.
Out: sequences in the order of the sources, the same for the same seed, texts and tokenizer.
Refuses specs that name nothing, name a text twice or weigh it wrongly, and texts that are too
short. Source: GPTQ (arXiv 2210.17323) draws sequences at random offsets of one stream.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from crumb.errors import TextError, UsageError
from crumb.texts.hub_texts import Use
from crumb.texts.sources import Text, is_known, path_exists, read_text
from crumb.texts.windows import Encode, token_stream

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
    sha256: str  # of the text in UTF-8


@dataclass(frozen=True, eq=False)
class CalibrationTokens:
    """What a model is calibrated on."""

    tokens: NDArray[np.int64]  # (sequences, length)
    sources: tuple[DrawnSource, ...]  # in the order of the sequences
    seed: int

    def sha256(self) -> str:
        """Of the tokens as little-endian 64-bit integers."""
        return hashlib.sha256(self.tokens.astype("<i8").tobytes()).hexdigest()


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
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError("a calibration text is named twice", where=name)
    return tuple(parts)


def _parse_part(part: str) -> MixturePart:
    name, colon, weight = part.rpartition(":")
    if not colon or (not is_known(name) and path_exists(part)):
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


def draw_calibration(
    spec: str,
    encode: Encode,
    *,
    sequences: int = SEQUENCES,
    length: int = LENGTH,
    seed: int = 0,
) -> CalibrationTokens:
    """Calibration sequences for a spec. Shapes: (sequences, length).

    Raises: UsageError for settings that cannot be, TextError for a text that cannot be read or is
    shorter than one sequence.
    """
    for name, value, least in (
        ("sequences", sequences, 1),
        ("length", length, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UsageError(f"calibration {name} must be at least {least}", found=value)
    parts = parse_mixture(spec)
    counts = share_sequences(parts, sequences)
    generator = np.random.default_rng(seed)
    drawn: list[NDArray[np.int64]] = []
    sources: list[DrawnSource] = []
    for part, count in zip(parts, counts, strict=True):
        text = read_text(part.name, Use.CALIBRATION)
        drawn.append(_draw(text, encode, count, length, generator))
        sources.append(DrawnSource(part.name, count, text.sha256))
    return CalibrationTokens(np.concatenate(drawn), tuple(sources), seed)


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
