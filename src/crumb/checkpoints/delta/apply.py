"""Apply a delta: the quantized directory again, from the exact base and the delta.

In: an opened base, a delta file, the output's path. Out: the directory, every file with the hash
that the delta records, published by a rename once all of it is there. Holds one part of one tensor.
Refuses another base, an output that is there, and deltas whose tensors do not have the base's
shapes: what is written is bounded by the base, whatever a delta claims.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.reader import (
    BESIDE,
    ORDER,
    TILES,
    packed_entry,
    read_order,
    with_columns,
)
from crumb.checkpoints.delta.make import in_stored_order, lies_beside
from crumb.checkpoints.delta.matrix import decode_part
from crumb.checkpoints.delta.piece import PIECE_BYTES
from crumb.checkpoints.delta.record import (
    DeltaFile,
    DeltaRecord,
    FileRecord,
    Source,
    byte_pieces,
    codes_name,
    header_name,
    own_name,
    parts_of,
    plain_name,
)
from crumb.checkpoints.directory_writer import new_directory
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import StoredArray, read_header
from crumb.checkpoints.tensor_map import Entry, StoredPacked
from crumb.errors import CheckpointError
from crumb.files.atomic_directory import refuse_filled
from crumb.formats.layouts.tile import CHUNK_INPUTS
from crumb.kernels.tile import pack_tensor
from crumb.progress import ProgressClock, ProgressListener, untold

HEADER_ROOM_BYTES, HEADER_BYTES_PER_TENSOR = 1 << 20, 1 << 10
"""A restored header is at most this large: by itself, and for each of the base's tensors."""

DAMAGED = "The delta is damaged: copy or download it again"


def apply_delta(
    base: Checkpoint, delta: DeltaFile, out: Path, progress: ProgressListener = untold
) -> DeltaRecord:
    """Restore the quantized directory. Raises: CheckpointError, OutputConflict, DoesNotFit."""
    refuse_filled(out)
    digest = base.sha256()
    if digest != delta.record.base_sha256:
        raise CheckpointError(
            "this delta was made of another base",
            where=delta.path,
            expected=f"a checkpoint with sha256 {delta.record.base_sha256}",
            found=f"{digest} at {base.path}",
            do="Give the exact checkpoint that was quantized, of the same revision",
        )
    with new_directory(out) as target:
        _Restorer(base, delta, target, ProgressClock(progress)).all_files()
        for name, file in delta.record.files.items():
            _finish(target / name, file.sha256, delta.path)
        if open_checkpoint(target).sha256() != delta.record.quantized_sha256:
            raise CheckpointError("not the model that the delta records", where=delta.path)
    return delta.record


def _finish(path: Path, expected: str, delta: Path) -> None:
    """Make a file durable, if it is what it should be. Raises: CheckpointError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise CheckpointError(
            "a restored file is not what was quantized",
            where=f"{delta}: {path.name}",
            expected=f"sha256 {expected}",
            found=digest,
            do="Check that the base's files are of the same revision, and the delta is undamaged",
        )


def room_bytes(entry: Entry) -> int:
    """More than any form of a tensor takes: 8 bytes a number, each dimension padded as tiles are.

    Its groups' parameters and the order of its columns are included.
    """
    return 8 * prod(size + -size % CHUNK_INPUTS for size in entry.shape)


def _write(file: BinaryIO, parts: Iterable[bytes | memoryview]) -> None:
    for part in parts:
        file.write(part)


@dataclass
class _Restorer:
    """One directory in the making."""

    base: Checkpoint
    delta: DeltaFile
    target: Path
    progress: ProgressClock
    arrays: dict[str, StoredArray] = field(default_factory=dict)  # of all files
    metadata: dict[str, str] = field(default_factory=dict)
    done_bytes: int = 0

    def all_files(self) -> None:
        """Everything the delta records, in the target directory."""
        for name, record in self.delta.record.files.items():
            restore = {
                Source.BASE: self.of_base,
                Source.DELTA: self.own,
                Source.WEIGHTS: self.lay_out,
            }[record.source]
            with (self.target / name).open("xb") as file:
                restore(file, name, record)
        entries = self.packed()
        total_bytes = sum(array.size_bytes for array in self.arrays.values())
        for name, array in self.arrays.items():
            self.progress(self.done_bytes / max(total_bytes, 1), name)
            self.array(name, array, entries.get(name.rpartition(".")[0]))
            self.done_bytes += array.size_bytes

    def of_base(self, file: BinaryIO, name: str, record: FileRecord) -> None:
        """A file as the base has it. Raises: CheckpointError."""
        content = self.base.files.read(name)
        if content is None:
            raise CheckpointError(
                "the base lacks a file that the delta refers to",
                where=self.base.path / name,
                expected=f"{record.bytes} bytes",
                do="Copy the base with its tokenizer's files",
            )
        file.write(content)

    def own(self, file: BinaryIO, name: str, record: FileRecord) -> None:
        """A file that the delta holds whole."""
        reader = self.delta.reader(own_name(name))
        _write(file, (piece.data for piece in reader.pieces(record.bytes)))
        reader.end()

    def lay_out(self, file: BinaryIO, name: str, record: FileRecord) -> None:
        """A file of tensors: its header, checked, and room for what the header says follows."""
        size_bytes = self.header(file, name)
        room = size_bytes + sum(map(room_bytes, self.base.tensors.entries.values()))
        if not size_bytes <= record.bytes <= room:
            raise CheckpointError(
                "a file of tensors cannot have this size",
                where=f"{self.delta.path}: {name}",
                expected=f"{size_bytes} to {room} bytes for its header and the base's tensors",
                found=record.bytes,
                do=DAMAGED,
            )
        file.flush()
        file.truncate(record.bytes)  # a hole, which takes no space
        arrays, metadata = read_header(self.target / name)
        repeated = self.arrays.keys() & arrays.keys()
        if repeated:
            raise CheckpointError(
                "two files hold the same tensor", where=self.delta.path, found=min(repeated)
            )
        self.arrays |= arrays
        self.metadata |= metadata

    def header(self, file: BinaryIO, name: str) -> int:
        """The first bytes of a safetensors file, as they were. Returns how many.

        Raises: CheckpointError.
        """
        reader = self.delta.reader(header_name(name))
        length = reader.take(8)
        size = int.from_bytes(length.tobytes(), "little")
        room = HEADER_ROOM_BYTES + HEADER_BYTES_PER_TENSOR * len(self.base.tensors.entries)
        if size > room:
            raise CheckpointError(
                "the header of a restored file is too large",
                where=f"{self.delta.path}: {name}",
                expected=f"at most {room} bytes for the base's tensors",
                found=size,
                do=DAMAGED,
            )
        file.write(length.data)
        _write(file, (piece.data for piece in reader.pieces(size)))
        reader.end()
        return len(length) + size

    def packed(self) -> dict[str, StoredPacked]:
        """The quantized matrices by name; what lies beside their codes is restored first."""
        entries: dict[str, StoredPacked] = {}
        for name, array in self.arrays.items():
            matrix, _, suffix = name.rpartition(".")
            if suffix != TILES or not matrix:
                continue
            where = f"{self.delta.path}: {matrix}"
            entry = packed_entry(self.metadata.get(matrix, ""), array, where)
            self.check_shape(matrix, entry.shape)
            beside: dict[str, StoredArray] = {}
            for suffix in BESIDE:
                array_beside = self.arrays.get(f"{matrix}.{suffix}")
                if array_beside is not None:
                    self.check_room(array_beside, entry, f"{where}.{suffix}")
                    self.plain(f"{matrix}.{suffix}", array_beside)
                    beside[suffix] = array_beside
            if ORDER in beside:
                order = read_order(beside[ORDER], entry.shape[1], where)
                entry = replace(entry, order=order)
            entries[matrix] = with_columns(entry, beside, where)
        return entries

    def array(self, name: str, array: StoredArray, entry: StoredPacked | None) -> None:
        """One array, where it belongs in its file. Raises: CheckpointError."""
        if lies_beside(name, entry):
            return
        is_tiles = entry is not None and name.endswith(f".{TILES}")
        if not is_tiles:
            self.check_shape(name, array.shape)
        if plain_name(name) in self.delta.pieces:
            self.plain(name, array)
        elif entry is not None and is_tiles:
            self.place(array, self.matrix(name.rpartition(".")[0], entry))
        else:
            self.place(array, self.bytes_of_base(name, array))

    def place(self, array: StoredArray, parts: Iterable[bytes | memoryview]) -> None:
        """Write an array where it belongs."""
        with array.path.open("r+b") as file:
            file.seek(array.offset_bytes)
            _write(file, parts)

    def plain(self, name: str, array: StoredArray) -> None:
        """An array that the delta holds as it is."""
        reader = self.delta.reader(plain_name(name))
        self.place(array, (piece.data for piece in reader.pieces(array.size_bytes)))
        reader.end()

    def bytes_of_base(self, name: str, array: StoredArray) -> Iterator[bytes]:
        """An array of the base as it is. Raises: CheckpointError."""
        entry = self.base.tensors.entry(name)
        if isinstance(entry, StoredArray) and entry.dtype == array.dtype:
            return byte_pieces(entry, PIECE_BYTES)
        raise CheckpointError(
            "the delta lacks a tensor that the base has in another type",
            where=f"{self.delta.path}: {name}",
            do=DAMAGED,
        )

    def matrix(self, name: str, entry: StoredPacked) -> Iterator[memoryview]:
        """The tiles of a quantized matrix, a part at a time. Raises: CheckpointError."""
        for part, rows in enumerate(parts_of(entry.shape)):
            weights = in_stored_order(self.base.tensors.read_float(name, rows), entry)
            piece = codes_name(name, part)
            where = f"{self.delta.path}: {piece}"
            matrix = decode_part(self.delta.reader(piece), weights, entry.format, where)
            tiles = pack_tensor(*matrix, entry.format).tiles
            yield np.ascontiguousarray(tiles).reshape(-1).data

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a tensor that is larger or smaller than the base's. Raises: CheckpointError."""
        base_shape = self.base.tensors.entry(name).shape
        if tuple(base_shape) != tuple(shape):
            raise CheckpointError(
                "a tensor of the delta does not have the base's shape",
                where=f"{self.delta.path}: {name}",
                expected=list(base_shape),
                found=list(shape),
                do=DAMAGED,
            )

    def check_room(self, array: StoredArray, entry: StoredPacked, where: str) -> None:
        """Refuse more beside a matrix than it has columns. Raises: CheckpointError."""
        most_bytes = room_bytes(entry)
        if array.size_bytes > most_bytes:
            raise CheckpointError(
                "what lies beside a matrix's codes is larger than the matrix",
                where=where,
                expected=f"at most {most_bytes}",
                found=array.size_bytes,
                do=DAMAGED,
            )
