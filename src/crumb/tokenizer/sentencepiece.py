"""LLaMA's tokenizer.model, a SentencePiece file: its pieces and settings.

In: the file, or its bytes. Out: a SentencePieceModel, checked.
Refuses unigram models, normalization tables, pieces of the user, and files that are not what they
claim to be. Source: sentencepiece_model.proto (google/sentencepiece), the protobuf wire format.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from crumb.errors import CheckpointError
from crumb.tokenizer.scored_pieces import (
    BYTE_PIECES,
    LONGEST_PIECE_CHARACTERS,
    Piece,
    PieceSettings,
    PieceType,
)

LARGEST_FILE_BYTES = 16 << 20
"""Known models have 0.2 to 5 MB."""

CONVERT = (
    "Convert it once where transformers is installed: "
    "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes tokenizer.json"
)


class Wire(IntEnum):
    """How the value of a protobuf field is stored; groups (3 and 4) are refused."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


Field = tuple[str, Wire]

MODEL_FIELDS: Mapping[int, Field] = {
    1: ("pieces", Wire.BYTES),
    2: ("trainer", Wire.BYTES),
    3: ("normalizer", Wire.BYTES),
}
PIECE_FIELDS: Mapping[int, Field] = {
    1: ("text", Wire.BYTES),
    2: ("score", Wire.FIXED32),
    3: ("type", Wire.VARINT),
}
TRAINER_FIELDS: Mapping[int, Field] = {
    3: ("model_type", Wire.VARINT),
    24: ("treat_whitespace_as_suffix", Wire.VARINT),
    35: ("byte_fallback", Wire.VARINT),
    41: ("bos_id", Wire.VARINT),
    42: ("eos_id", Wire.VARINT),
}
NORMALIZER_FIELDS: Mapping[int, Field] = {
    2: ("precompiled_charsmap", Wire.BYTES),
    3: ("add_dummy_prefix", Wire.VARINT),
    4: ("remove_extra_whitespaces", Wire.VARINT),
    5: ("escape_whitespaces", Wire.VARINT),
}

DEFAULTS: Mapping[str, Any] = {
    "model_type": 1,
    "treat_whitespace_as_suffix": 0,
    "byte_fallback": 0,
    "bos_id": 1,
    "eos_id": 2,
    "precompiled_charsmap": b"",
    "add_dummy_prefix": 1,
    "remove_extra_whitespaces": 1,
    "escape_whitespaces": 1,
}
"""What a setting means when the file does not store it."""

FIXED_BYTES: Mapping[int, int] = {Wire.FIXED32: 4, Wire.FIXED64: 8}

UNKNOWN = PieceType.UNKNOWN

READ_TYPES = (PieceType.NORMAL, PieceType.UNKNOWN, PieceType.CONTROL, PieceType.BYTE)

SUPPORTED: Mapping[str, tuple[Any, str]] = {
    "model_type": (2, "byte-pair encoding (model_type 2)"),
    "treat_whitespace_as_suffix": (0, "spaces in front of words"),
    "precompiled_charsmap": (b"", "identity normalization"),
    "escape_whitespaces": (1, "spaces written as ▁"),
}
"""Settings that must have one value, and what that value means."""


@dataclass(frozen=True)
class SentencePieceModel:
    """What of the file matters for encoding and decoding."""

    pieces: tuple[Piece, ...]
    settings: Mapping[str, Any]  # the keys of DEFAULTS

    def piece_settings(self, *, add_begin: bool, add_end: bool) -> PieceSettings:
        """The settings as a tokenizer of pieces has them."""
        unknown = [token for token, piece in enumerate(self.pieces) if piece.type == UNKNOWN]
        begin, end = (self.settings[name] for name in ("bos_id", "eos_id"))
        return PieceSettings(
            unknown=unknown[0],
            begin=begin if add_begin and begin >= 0 else None,
            end=end if add_end and end >= 0 else None,
            space_prefix=bool(self.settings["add_dummy_prefix"]),
            extra_spaces_removed=bool(self.settings["remove_extra_whitespaces"]),
        )


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """The pieces and settings of a file. Raises: CheckpointError."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > LARGEST_FILE_BYTES:
            raise CheckpointError(
                "too large for a tokenizer",
                where=path,
                expected=f"at most {LARGEST_FILE_BYTES} bytes",
                found=size_bytes,
            )
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=path) from error
    return parse_sentencepiece(data, path)


def parse_sentencepiece(data: bytes, path: Path) -> SentencePieceModel:
    """The pieces and settings of a file's content. Raises: CheckpointError."""
    pieces: dict[str, Piece] = {}
    settings = dict(DEFAULTS)
    for name, part in _Message(path, data).fields(MODEL_FIELDS):
        if name == "pieces":
            piece = _piece(part)
            if piece.text in pieces:
                raise part.broken("a piece is there twice", 0, found=repr(piece.text))
            pieces[piece.text] = piece
        else:
            table = TRAINER_FIELDS if name == "trainer" else NORMALIZER_FIELDS
            settings.update(part.fields(table))
    model = SentencePieceModel(tuple(pieces.values()), settings)
    _check(model, path)
    return model


@dataclass(frozen=True)
class _Message:
    """A protobuf message inside a file; every read is checked against its end."""

    path: Path
    data: bytes
    offset: int = 0  # of its first byte in the file

    def fields(self, table: Mapping[int, Field]) -> Iterator[tuple[str, Any]]:
        """The fields that a table names, in file order; the others are skipped.

        A varint comes out as a signed integer, four bytes as a float, a run of bytes as a
        _Message, which is what it may be.
        """
        place = 0
        while place < len(self.data):
            begin = place
            key, place = self._varint(place)
            value, place = self._value(key & 7, place, begin)
            if key >> 3 not in table:
                continue
            name, wire = table[key >> 3]
            if key & 7 != wire:
                raise self.broken(
                    f"the field {name} is stored as another type", begin, int(wire), key & 7
                )
            yield name, value

    def _value(self, wire: int, place: int, begin: int) -> tuple[Any, int]:
        """The value of a field and the place after it."""
        if wire == Wire.VARINT:
            value, place = self._varint(place)
            return value - (1 << 64) if value >> 63 else value, place
        if wire == Wire.BYTES:
            size_bytes, place = self._varint(place)
        elif wire in FIXED_BYTES:
            size_bytes = FIXED_BYTES[wire]
        else:
            raise self.broken("no SentencePiece model: no such wire type", begin, found=wire)
        end = place + size_bytes
        if end > len(self.data):
            raise self.broken(
                "a field reaches past the end of its message",
                begin,
                f"at most {len(self.data) - place} bytes",
                f"{size_bytes} bytes",
            )
        raw = self.data[place:end]
        if wire == Wire.FIXED32:
            return struct.unpack("<f", raw)[0], end
        return _Message(self.path, raw, self.offset + place), end

    def _varint(self, place: int) -> tuple[int, int]:
        value = 0
        for index, byte in enumerate(self.data[place : place + 10]):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, place + index + 1
        raise self.broken("an integer does not end", place, "at most 10 bytes")

    def broken(
        self, what: str, place: int, expected: object = None, found: object = None
    ) -> CheckpointError:
        """An error at a place in this message."""
        where = f"{self.path}, byte {self.offset + place}"
        return CheckpointError(what, where=where, expected=expected, found=found)


def _piece(message: _Message) -> Piece:
    """One piece, checked by itself."""
    values: dict[str, Any] = {"score": 0.0, "type": 1} | dict(message.fields(PIECE_FIELDS))
    raw = values["text"].data if "text" in values else b""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise message.broken("a piece is not UTF-8", 0, found=repr(raw[:40])) from error
    if not 1 <= len(text) <= LONGEST_PIECE_CHARACTERS:
        raise message.broken(
            "a piece is empty or too long",
            0,
            f"1 to {LONGEST_PIECE_CHARACTERS} characters",
            len(text),
        )
    if not math.isfinite(values["score"]):
        raise message.broken("a score is not finite", 0, found=f"{values['score']} for {text!r}")
    if values["type"] not in READ_TYPES:
        raise CheckpointError(
            "pieces of this type are not read",
            where=f"{message.path}, byte {message.offset}, piece {text!r}",
            expected="one of " + ", ".join(f"{kind.value} ({kind.name})" for kind in READ_TYPES),
            found=values["type"],
            do=CONVERT,
        )
    return Piece(text, values["score"], PieceType(values["type"]))


def _check(model: SentencePieceModel, path: Path) -> None:
    """What pieces and settings must be together. Raises: CheckpointError."""
    for name, (value, meaning) in SUPPORTED.items():
        setting = model.settings[name]
        if isinstance(setting, _Message):
            setting = setting.data
        if setting != value:
            raise CheckpointError(
                "this kind of SentencePiece model is not read",
                where=path,
                expected=meaning,
                found=f"{name} of {len(setting)} bytes" if value == b"" else f"{name} {setting}",
                do=CONVERT,
            )
    unknown = [piece for piece in model.pieces if piece.type == UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError("a model has one unknown piece", where=path, found=len(unknown))
    found_bytes = {piece.text for piece in model.pieces if piece.type == PieceType.BYTE}
    expected_bytes = BYTE_PIECES if model.settings["byte_fallback"] else frozenset()
    if found_bytes != expected_bytes:
        raise CheckpointError(
            "the byte pieces do not agree with byte_fallback",
            where=path,
            expected=f"{len(expected_bytes)} pieces of <0x00> to <0xFF>",
            found=len(found_bytes),
        )
    for name in ("bos_id", "eos_id"):
        token = model.settings[name]
        if token == -1:
            continue
        if not 0 <= token < len(model.pieces) or model.pieces[token].type != PieceType.CONTROL:
            raise CheckpointError(
                f"{name} is no control piece",
                where=path,
                expected=f"-1, or a control piece below {len(model.pieces)}",
                found=token,
            )
