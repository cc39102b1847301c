"""Delta files: what is written about a quantized directory, read back and checked.

In: a path. Out: a DeltaFile: its record and where each compressed piece lies. A delta is a
safetensors file of byte arrays: header/FILE, codes/TENSOR/PART, plain/ARRAY, file/NAME.
Refuses other files and versions, names that leave the output, files beyond a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from crumb.checkpoints.delta.piece import PieceReader
from crumb.checkpoints.safetensors import StoredArray, read_header
from crumb.errors import CheckpointError
from crumb.formats.layouts.tile import TILE_ROWS

FORMAT = "crumb-delta"
VERSION = 1

LARGEST_OWN_FILES_BYTES = 256 << 20
"""What a delta may hold beside tensors, all together: manifests are a thousandth of it."""

PART_WEIGHTS = 1 << 22
"""A matrix is coded in parts of at most so many weights, at least a tile's rows."""


class Source(StrEnum):
    """Where the bytes of a restored file come from."""

    BASE = "base"  # the base's file of that name, as it is
    DELTA = "delta"  # the delta alone
    WEIGHTS = "weights"  # tensor by tensor from both


_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the quantized directory."""

    bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
    sha256: _Hash
    source: Source


class DeltaRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a delta says of itself."""

    version: int
    base_sha256: _Hash
    quantized_sha256: _Hash
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class DeltaFile:
    """An opened delta; its pieces are still on disk."""

    path: Path
    record: DeltaRecord
    pieces: Mapping[str, StoredArray]

    def reader(self, name: str) -> PieceReader:
        """A piece, to be decompressed. Raises: CheckpointError."""
        piece = self.pieces.get(name)
        if piece is None:
            raise CheckpointError("the delta lacks a piece", where=self.path, expected=name)
        return PieceReader(piece.read(), f"{self.path}: {name}")


def parts_of(shape: tuple[int, int]) -> list[slice]:
    """The rows of each part of a matrix: whole tiles, but for the last."""
    tiles = max(1, PART_WEIGHTS // (TILE_ROWS * max(shape[1], 1)))
    rows = tiles * TILE_ROWS
    return [slice(begin, min(begin + rows, shape[0])) for begin in range(0, shape[0], rows)]


def codes_name(tensor: str, part: int) -> str:
    """The piece that holds a part of a quantized matrix."""
    return f"codes/{tensor}/{part}"


def plain_name(array: str) -> str:
    """The piece that holds an array as it is in its file."""
    return f"plain/{array}"


def header_name(file: str) -> str:
    """The piece that holds the header of a safetensors file."""
    return f"header/{file}"


def own_name(file: str) -> str:
    """The piece that holds a file that is not of tensors."""
    return f"file/{file}"


def metadata_of(record: DeltaRecord) -> dict[str, str]:
    """The record as a safetensors file carries it."""
    return {"format": FORMAT, "record": msgspec.json.encode(record).decode()}


def read_delta(path: Path) -> DeltaFile:
    """Open a delta file. Raises: CheckpointError."""
    pieces, metadata = read_header(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            "not a delta file",
            where=path,
            expected=f"a safetensors file whose metadata has format {FORMAT}",
            found=repr(metadata.get("format", ""))[:80],
        )
    try:
        record = msgspec.json.decode(metadata.get("record", ""), type=DeltaRecord)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CheckpointError(f"the delta's record is malformed: {error}", where=path) from error
    if record.version != VERSION:
        raise CheckpointError(
            "this delta is of another version",
            where=path,
            expected=VERSION,
            found=record.version,
            do="Use the version of crumb that made it",
        )
    for name, piece in pieces.items():
        if piece.dtype != np.uint8 or len(piece.shape) != 1 or not prod(piece.shape):
            raise CheckpointError("a piece of a delta is not bytes", where=f"{path}: {name}")
    _check_files(record.files, path)
    return DeltaFile(path, record, pieces)


def is_plain_name(name: str) -> bool:
    """Whether a name is a file's in the directory itself, and not a hidden one's."""
    return name.isprintable() and Path(name).name == name and name[:1] not in ("", ".")


def _check_files(files: Mapping[str, FileRecord], path: Path) -> None:
    """Refuse names that leave the directory, and more than a bound of files of its own."""
    for name in files:
        if not is_plain_name(name) or len(name.encode(errors="replace")) > 200:
            raise CheckpointError(
                "the delta names a file that may not be written",
                where=path,
                expected="a name without folders",
                found=repr(name[:120]),
            )
    own = sum(file.bytes for file in files.values() if file.source is Source.DELTA)
    if own > LARGEST_OWN_FILES_BYTES:
        raise CheckpointError(
            "the delta's own files are too large",
            where=path,
            expected=f"at most {LARGEST_OWN_FILES_BYTES} bytes",
            found=own,
        )


def byte_pieces(array: StoredArray, piece_bytes: int) -> Iterator[bytes]:
    """An array's bytes as they lie in its file, a piece at a time. Raises: CheckpointError."""
    size = array.size_bytes
    lying = StoredArray(array.path, np.dtype(np.uint8), (size,), array.offset_bytes, size)
    for begin in range(0, size, piece_bytes):
        yield lying.read(slice(begin, begin + piece_bytes)).tobytes()
