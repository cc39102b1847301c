"""Make a delta: what quantization decided about a base, without the base's weights.

In: an opened base and the crumb directory that was quantized from it. Out: a delta file and what
each tensor takes in it. One part of one tensor is in memory at a time; every part is decoded again
before it is kept. Refuses other containers, another base's tensors, an output that is there.
`delta.apply` is the way back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.crumb.reader import BESIDE, METHOD, TILES
from crumb.checkpoints.delta.matrix import decode_part, encode_part
from crumb.checkpoints.delta.piece import PIECE_BYTES, PieceReader, compressed
from crumb.checkpoints.delta.record import (
    LARGEST_OWN_FILES_BYTES,
    VERSION,
    DeltaRecord,
    FileRecord,
    Source,
    byte_pieces,
    codes_name,
    header_name,
    is_plain_name,
    metadata_of,
    own_name,
    parts_of,
    plain_name,
)
from crumb.checkpoints.directory_writer import AGAIN, refuse_existing
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray, read_header, write_file
from crumb.checkpoints.tensor_map import Entry, StoredPacked
from crumb.errors import CheckpointError, UsageError
from crumb.files.atomic_file import disk_errors
from crumb.formats.catalog import Format
from crumb.formats.layouts.tile import tiles_of_rows
from crumb.formats.packed_tensor import assemble
from crumb.kernels.tile import pack_tensor, unpack_tensor
from crumb.progress import ProgressClock, ProgressListener, untold

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MatrixReport:
    """What one quantized matrix takes."""

    name: str
    format: Format
    weights: int
    stored_bytes: int  # in the quantized directory
    delta_bytes: int
    changed_share: float | None  # codes that plain rounding would not choose; None: not compared

    @property
    def bits_per_weight(self) -> float:
        """What one weight takes in the delta."""
        return 8 * self.delta_bytes / max(self.weights, 1)


@dataclass(frozen=True)
class DeltaReport:
    """What a delta takes."""

    out: Path
    record: DeltaRecord
    parameters: int  # of the whole model
    quantized_bytes: int  # the quantized directory's weight files
    delta_bytes: int  # the delta file
    tensors: list[MatrixReport]

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized matrices: codes, scales and offsets."""
        return 8 * sum(tensor.delta_bytes for tensor in self.tensors) / max(self.weights, 1)

    @property
    def stored_bits_per_weight(self) -> float:
        """Of the same matrices in the quantized directory."""
        return 8 * sum(tensor.stored_bytes for tensor in self.tensors) / max(self.weights, 1)

    @property
    def weights(self) -> int:
        """How many there are in quantized matrices."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def bits_per_parameter(self) -> float:
        """Of the whole file over the whole model."""
        return 8 * self.delta_bytes / self.parameters


def make_delta(
    base: Checkpoint, quantized: Checkpoint, out: Path, progress: ProgressListener = untold
) -> DeltaReport:
    """Write a delta. Raises: UsageError, CheckpointError, OutputConflict, DoesNotFit."""
    _check_container(quantized)
    refuse_existing(out)
    with disk_errors(out, AGAIN), _spooling(out) as spool:
        maker = _Maker(base, quantized, spool, ProgressClock(progress))
        record = DeltaRecord(
            version=VERSION,
            base_sha256=base.sha256(),
            quantized_sha256=quantized.sha256(),
            files=maker.all_files(),
        )
        pieces = {
            name: ArrayToWrite(piece.dtype, piece.shape, piece.read)
            for name, piece in spool.pieces.items()
        }
        write_file(out, pieces, metadata_of(record))
    return DeltaReport(
        out=out,
        record=record,
        parameters=quantized.plan.parameters(),
        quantized_bytes=quantized.weight_bytes(),
        delta_bytes=out.stat().st_size,
        tensors=maker.reports,
    )


def _check_container(quantized: Checkpoint) -> None:
    settings = quantized.configuration.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method != METHOD or not quantized.path.is_dir():
        raise UsageError(
            "a delta is made of a crumb directory",
            where=quantized.path,
            expected=f"quant_method {METHOD}",
            found=repr(method)[:80],
            do="Quantize with `crumb quantize`, or convert with `crumb export --to crumb`",
        )


def lies_beside(name: str, entry: Entry | None) -> bool:
    """Whether an array is a packed matrix's order of columns, or of its float columns."""
    return name.rpartition(".")[2] in BESIDE and isinstance(entry, StoredPacked)


def in_stored_order(weights: Floats, entry: StoredPacked) -> Floats:
    """The base's weights with the columns as the packed matrix has them."""
    return weights if entry.order is None else weights[:, entry.order]


@dataclass
class _Spool:
    """Finished pieces, one behind the other in a temporary file."""

    path: Path
    file: BinaryIO
    pieces: dict[str, StoredArray] = field(default_factory=dict)

    def add(self, name: str, parts: Iterable[bytes]) -> int:
        """Keep a piece. Returns its bytes."""
        begin = self.file.tell()
        for part in parts:
            self.file.write(part)
        size = self.file.tell() - begin
        self.file.flush()
        self.pieces[name] = StoredArray(self.path, np.dtype(np.uint8), (size,), begin, size)
        return size


@contextmanager
def _spooling(out: Path) -> Iterator[_Spool]:
    """A spool beside the output, gone at the end."""
    path = out.with_name(f"{out.name}.{os.getpid()}.spool")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb", buffering=0) as file:
            yield _Spool(path, file)
    finally:
        path.unlink(missing_ok=True)


@dataclass
class _Maker:
    """One delta in the making."""

    base: Checkpoint
    quantized: Checkpoint
    spool: _Spool
    progress: ProgressClock
    reports: list[MatrixReport] = field(default_factory=list)
    done_bytes: int = 0

    def all_files(self) -> dict[str, FileRecord]:
        """Everything the quantized directory holds, folders and hidden files aside."""
        weights = {path.name for path in self.quantized.weight_files}
        records: dict[str, FileRecord] = {}
        own_bytes = 0
        for path in sorted(self.quantized.path.iterdir()):
            if not is_plain_name(path.name) or not path.is_file():
                continue
            source = self.weights(path) if path.name in weights else self.beside(path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            records[path.name] = FileRecord(path.stat().st_size, digest, source)
            own_bytes += records[path.name].bytes if source is Source.DELTA else 0
        if own_bytes > LARGEST_OWN_FILES_BYTES:
            raise UsageError(
                "the files beside the weights are too large for a delta",
                where=self.quantized.path,
                expected=f"at most {LARGEST_OWN_FILES_BYTES} bytes that are not the base's",
                found=own_bytes,
            )
        return records

    def beside(self, path: Path) -> Source:
        """A file that is not of tensors: the base's, or kept whole."""
        if path.stat().st_size > LARGEST_OWN_FILES_BYTES:
            return Source.DELTA  # refused for its size, unread
        content = path.read_bytes()
        if self.base.files.read(path.name) == content:
            return Source.BASE
        self.spool.add(own_name(path.name), compressed([content]))
        return Source.DELTA

    def weights(self, path: Path) -> Source:
        """A file of tensors: its header, then each array that the base does not have."""
        arrays, _ = read_header(path)
        begin = min((array.offset_bytes for array in arrays.values()), default=path.stat().st_size)
        header = StoredArray(path, np.dtype(np.uint8), (begin,), 0, begin)
        self.spool.add(header_name(path.name), compressed(byte_pieces(header, PIECE_BYTES)))
        for name, array in arrays.items():
            self.progress(self.done_bytes / max(self.quantized.weight_bytes(), 1), name)
            matrix, _, suffix = name.rpartition(".")
            entry = self.quantized.tensors.entries.get(matrix)
            if suffix == TILES and isinstance(entry, StoredPacked):
                self.matrix(matrix, entry)
            elif lies_beside(name, entry) or not self.is_of_base(name, array):
                self.spool.add(plain_name(name), compressed(byte_pieces(array, PIECE_BYTES)))
            self.done_bytes += array.size_bytes
        return Source.WEIGHTS

    def is_of_base(self, name: str, array: StoredArray) -> bool:
        """Whether the base has exactly this array. Raises: CheckpointError for another shape."""
        entry = self.base.tensors.entry(name)
        self.check_shape(name, entry.shape, array.shape)
        if not isinstance(entry, StoredArray) or entry.dtype != array.dtype:
            return False
        both = zip(byte_pieces(entry, PIECE_BYTES), byte_pieces(array, PIECE_BYTES), strict=True)
        return all(one == other for one, other in both)

    def check_shape(self, name: str, base_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Refuse a model that was not made of this base. Raises: CheckpointError."""
        if tuple(base_shape) != tuple(shape):
            raise CheckpointError(
                "the base has this tensor in another shape",
                where=f"{self.base.path}: {name}",
                expected=list(shape),
                found=list(base_shape),
                do="Give the checkpoint that was quantized",
            )

    def matrix(self, name: str, entry: StoredPacked) -> None:
        """A quantized matrix against the base's weights; as it is where that does not restore it.

        Tiles of other programs may hold what packing never leaves, such as padding that is not 0.
        """
        self.check_shape(name, self.base.tensors.entry(name).shape, entry.shape)
        weights, format = entry.shape[0] * entry.shape[1], entry.format
        pieces: list[bytes] = []
        changed = 0.0
        for rows in parts_of(entry.shape):
            piece, share = self.part(name, entry, rows)
            if piece is None:
                whole = compressed(byte_pieces(entry.tiles, PIECE_BYTES))
                size = self.spool.add(plain_name(f"{name}.{TILES}"), whole)
                report = MatrixReport(name, format, weights, entry.size_bytes, size, None)
                self.reports.append(report)
                return
            pieces.append(piece)
            changed += share * (rows.stop - rows.start) / entry.shape[0]
        for part, piece in enumerate(pieces):
            self.spool.add(codes_name(name, part), [piece])
        size = sum(map(len, pieces))
        self.reports.append(MatrixReport(name, format, weights, entry.size_bytes, size, changed))

    def part(self, name: str, entry: StoredPacked, rows: slice) -> tuple[bytes | None, float]:
        """Some rows as a piece, None where it does not lead back to the same bytes."""
        tiles = entry.tiles.read(tiles_of_rows(rows.start, rows.stop))
        count = rows.stop - rows.start
        packed = assemble(entry.format, count, entry.shape[1], tiles, name)
        weights = in_stored_order(self.base.tensors.read_float(name, rows), entry)
        piece, changed = encode_part(weights, unpack_tensor(packed), entry.format)
        reader = PieceReader(np.frombuffer(piece, np.uint8), name)
        restored = pack_tensor(*decode_part(reader, weights, entry.format, name), entry.format)
        return (piece if np.array_equal(restored.tiles, tiles) else None), changed
