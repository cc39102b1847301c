"""A vocabulary of scored pieces, as SentencePiece and GGUF store it, as a tokenizer.json.

In: pieces with score and type, a piece's place being its token. Out: the JSON of the tokenizers
library: byte-pair encoding with byte fallback whose merges follow the pieces' scores. Special
tokens written out in a text are recognized, as by the tokenizer.json of these models.
Refuses pieces that merge in more ways than any known model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

LONGEST_PIECE_CHARACTERS = 512
"""Known models have up to 32; every split of a piece is looked at, so this bounds the work."""

MOST_MERGES = 2_000_000
"""Known models have up to 600,000; a file made for it can have more than ten million."""

MOST_SPACES = 1 << 24
"""More than a text has at its beginning."""

SPACE = "▁"
"""How a space is written in pieces."""

BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class PieceType(IntEnum):
    """What a piece is; SentencePiece and GGUF number these alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


ADDED = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)
"""Pieces that are found whole in a text, before anything else is done to it."""


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class PieceSettings:
    """What else decides about tokens; the first three are tokens, None for none."""

    unknown: int | None = None
    begin: int | None = None  # in front of every text
    end: int | None = None  # behind every text
    space_prefix: bool = True  # texts are read as if a space stood in front of them
    extra_spaces_removed: bool = False


def pieces_tokenizer(
    pieces: Sequence[Piece], settings: PieceSettings, *, most_merges: int = MOST_MERGES
) -> dict[str, Any]:
    """The tokenizer.json of pieces, which have different texts.

    Raises: ValueError for pieces with too many merges.
    """
    unknown = None if settings.unknown is None else pieces[settings.unknown].text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(pieces),
        "normalizer": normalizer(settings.space_prefix, settings.extra_spaces_removed),
        "pre_tokenizer": None,
        "post_processor": begin_and_end(pieces, settings.begin, settings.end),
        "decoder": _decoder(settings),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(piece.type == PieceType.BYTE for piece in pieces),
            "ignore_merges": False,
            "vocab": {piece.text: token for token, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges_by_score(pieces, most_merges)],
        },
    }


def merges_by_score(
    pieces: Sequence[Piece], most_merges: int = MOST_MERGES
) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the piece of the highest score first.

    SentencePiece joins any two neighbours that make a piece; the library wants the pairs listed.
    Among pieces of equal score it goes from left to right, and here the first in the file wins.
    Raises: ValueError for more than so many.
    """
    normal = {
        piece.text: token for token, piece in enumerate(pieces) if piece.type == PieceType.NORMAL
    }
    merges: list[tuple[float, int, int, int]] = []
    for text, token in normal.items():
        for cut in range(1, len(text)):
            left, right = normal.get(text[:cut]), normal.get(text[cut:])
            if left is not None and right is not None:
                if len(merges) == most_merges:
                    raise ValueError(f"its pieces have more than {most_merges} merges")
                merges.append((-pieces[token].score, token, left, right))
    return [(pieces[left].text, pieces[right].text) for *_, left, right in sorted(merges)]


def added_tokens(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """The pieces that are found whole in a text, in the order of their tokens."""
    return [
        {
            "id": token,
            "content": piece.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.type != PieceType.USER_DEFINED,
        }
        for token, piece in enumerate(pieces)
        if piece.type in ADDED
    ]


def normalizer(space_prefix: bool, extra_spaces_removed: bool) -> dict[str, Any]:
    """Spaces as pieces have them."""
    steps: list[dict[str, Any]] = []
    if extra_spaces_removed:
        steps += [
            _replace({"Regex": rf"\A +|[ {SPACE}]+\z"}, ""),
            _replace({"Regex": " {2,}"}, " "),
        ]
    if space_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return {"type": "Sequence", "normalizers": [*steps, _replace({"String": " "}, SPACE)]}


def begin_and_end(
    pieces: Sequence[Piece], begin: int | None, end: int | None
) -> dict[str, Any] | None:
    """The post-processor that puts tokens in front of texts and behind them."""
    before, after = (
        [] if token is None else [{"SpecialToken": {"id": pieces[token].text, "type_id": 0}}]
        for token in (begin, end)
    )
    if not before and not after:
        return None
    first, second = (
        [*before, {"Sequence": {"id": name, "type_id": place}}, *after]
        for place, name in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {
            pieces[token].text: {
                "id": pieces[token].text,
                "ids": [token],
                "tokens": [pieces[token].text],
            }
            for token in (begin, end)
            if token is not None
        },
    }


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": dict(pattern), "content": content}


def _decoder(settings: PieceSettings) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _replace({"String": SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if settings.extra_spaces_removed:
        steps.append({"type": "Strip", "content": " ", "start": MOST_SPACES, "stop": 0})
    elif settings.space_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
