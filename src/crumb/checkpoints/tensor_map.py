"""TensorMap: every tensor of a checkpoint by name, read one at a time.

In: entries from a container reader. Out: float arrays, packed tensors, or rows in f32; read, or
mapped as they lie in the file.
Refuses names that are missing and shapes that do not follow from the Plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.checkpoints.safetensors import DTYPES, StoredArray
from crumb.checkpoints.unread_tensors import check_unread
from crumb.errors import CheckpointError, UsageError
from crumb.formats.catalog import Format
from crumb.formats.float_columns import FloatColumns
from crumb.formats.grid import GroupParameters, take_rows
from crumb.formats.layouts.tile import TILE_ROWS, tiles_of_rows
from crumb.formats.packed_tensor import PackedTensor, assemble, stored_shape
from crumb.kernels.decode import decode
from crumb.kernels.tile import pack_tensor, unpack_tensor
from crumb.operations.embed import Embed

Matrix = tuple[NDArray[np.uint8], GroupParameters]
"""Codes (out_features, in_features) and their parameters."""

FLOATS = ("float64", "float32", "float16", "bfloat16")

NVFP4 = "NVFP4"
"""What 4-bit floats are called that no row of the catalog holds: floats with scales, as FP8's."""


@dataclass(frozen=True)
class StoredColumns:
    """Where the float columns of a matrix lie."""

    places: NDArray[np.int32]  # (count,)
    tiles: StoredArray  # float16 (tiles, count, 16)

    @property
    def size_bytes(self) -> int:
        """In their file and in memory."""
        return self.places.nbytes + self.tiles.size_bytes

    def of(self, tiles: NDArray[np.float16]) -> FloatColumns:
        """The columns, of tiles that were read or mapped."""
        return FloatColumns(self.places, tiles)


@dataclass(frozen=True)
class StoredPacked:
    """Where a quantized matrix lies in tiles."""

    format: Format
    shape: tuple[int, int]  # (out_features, in_features)
    tiles: StoredArray
    order: NDArray[np.intp] | None = None  # (in_features,) the input that each column belongs to
    columns: StoredColumns | None = None  # that have float16 weights beside their codes

    @property
    def source(self) -> str:
        """What the type is called where the matrix lies."""
        return self.format.name

    @property
    def size_bytes(self) -> int:
        """In its file."""
        return self.tiles.size_bytes + (0 if self.columns is None else self.columns.size_bytes)

    @property
    def used_bytes(self) -> int:
        """In memory, where it is read or mapped."""
        return self.size_bytes

    @property
    def lies_as_floats(self) -> bool:
        """Whether the file holds weights here, and not codes to make them of."""
        return False

    def read(self) -> PackedTensor:
        """The matrix in memory. Raises: CheckpointError."""
        columns = None if self.columns is None else self.columns.of(self.columns.tiles.read())
        return self._assembled(self.tiles.read(), columns)

    def map(self, at_once: bool = True) -> PackedTensor:
        """The matrix as it lies in the file. Raises: CheckpointError, DoesNotFit."""
        columns = None
        if self.columns is not None:
            columns = self.columns.of(self.columns.tiles.map(at_once))
        return self._assembled(self.tiles.map(at_once), columns)

    def read_into(self, memory: NDArray[np.uint8]) -> PackedTensor:
        """The matrix in memory of the caller's, size_bytes of it. Raises: CheckpointError."""
        size, columns = self.tiles.size_bytes, None
        tiles = memory[:size].reshape(self.tiles.shape)
        self.tiles.read_into(tiles)
        if self.columns is not None:
            halves = self.columns.tiles
            behind = memory[size : size + halves.size_bytes].view(np.float16).reshape(halves.shape)
            halves.read_into(behind)
            columns = self.columns.of(behind)
        return self._assembled(tiles, columns)

    def read_codes(self, rows: slice) -> Matrix:
        """Codes and parameters of some rows, columns as stored, float columns left away.

        Raises: CheckpointError.
        """
        part, inside = self._read_tiles(rows)
        codes, parameters = unpack_tensor(part)
        return codes[inside], take_rows(parameters, inside)

    def read_float(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Some rows in f32; only the tiles that hold them are read. Raises: CheckpointError."""
        part, inside = self._read_tiles(rows)
        return _restored(decode(part)[inside], self.order)

    def _assembled(self, tiles: NDArray[np.uint8], columns: FloatColumns | None) -> PackedTensor:
        assembled = assemble(self.format, *self.shape, tiles, str(self.tiles.path))
        return replace(assembled, columns=columns)

    def _read_tiles(self, rows: slice) -> tuple[PackedTensor, slice]:
        """The tiles that hold some rows, and where in them those rows are."""
        begin, end, _ = rows.indices(self.shape[0])
        tiles = tiles_of_rows(begin, max(begin, end))
        first_row = TILE_ROWS * tiles.start
        count = min(TILE_ROWS * tiles.stop, self.shape[0]) - first_row
        content, where = self.tiles.read(tiles), str(self.tiles.path)
        part = assemble(self.format, count, self.shape[1], content, where)
        if self.columns is not None:
            part = replace(part, columns=self.columns.of(self.columns.tiles.read(tiles)))
        return part, slice(begin - first_row, end - first_row)


@dataclass(frozen=True)
class StoredCodes:
    """A quantized matrix in another container: its codes and parameters, converted when read."""

    format: Format
    shape: tuple[int, int]  # (out_features, in_features)
    size_bytes: int  # in its file
    source: str  # what its container calls the format, such as Q4_K
    read_codes: Callable[[slice], Matrix]  # some rows -> codes, parameters
    order: NDArray[np.intp] | None = None  # (in_features,) the input that each column belongs to

    @property
    def used_bytes(self) -> int:
        """In memory, in tiles."""
        return prod(stored_shape(self.format, *self.shape))

    @property
    def lies_as_floats(self) -> bool:
        """Whether the file holds weights here, and not codes to make them of."""
        return False

    def read(self) -> PackedTensor:
        """The matrix in tiles; with an order, its columns stand in that order.

        Raises: CheckpointError.
        """
        codes, parameters = self.read_codes(slice(0, self.shape[0]))
        assert codes.shape == self.shape, self.source
        return pack_tensor(codes, parameters, self.format)

    def read_float(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Some rows in f32, columns as the layer's input has them. Raises: CheckpointError."""
        codes, parameters = self.read_codes(slice(*rows.indices(self.shape[0])[:2]))
        assert codes.shape[1] == self.shape[1], self.source
        return _restored(decode(pack_tensor(codes, parameters, self.format)), self.order)


def _restored(columns: NDArray[np.float32], order: NDArray[np.intp] | None) -> NDArray[np.float32]:
    """Columns where the layer's input has them."""
    if order is None:
        return columns
    restored = np.empty_like(columns)
    restored[:, order] = columns
    return restored


@dataclass(frozen=True)
class StoredFloats:
    """A float tensor of another container that is rearranged or widened when read."""

    dtype: np.dtype[Any]  # of what is read
    shape: tuple[int, ...]
    size_bytes: int  # in its file
    source: str  # what its container calls the type
    read_rows: Callable[[slice], NDArray[Any]]  # some rows; all there are of a vector

    @property
    def used_bytes(self) -> int:
        """In memory, once it is read."""
        return self.dtype.itemsize * prod(self.shape)

    @property
    def lies_as_floats(self) -> bool:
        """Whether the file holds weights here, and not codes to make them of."""
        return self.source in DTYPES or self.source in (*FLOATS, NVFP4)

    def read(self, rows: slice | None = None) -> NDArray[Any]:
        """The tensor, or some of its rows. Raises: CheckpointError."""
        chosen = slice(None) if rows is None else rows
        return self.read_rows(slice(*chosen.indices(self.shape[0])[:2]))

    def read_float(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Some rows in f32. Raises: CheckpointError."""
        with np.errstate(over="ignore"):
            return self.read(rows).astype(np.float32, copy=False)


Entry = StoredArray | StoredPacked | StoredCodes | StoredFloats
"""All have shape, source, size_bytes, used_bytes, lies_as_floats, read and read_float."""

Quantized = StoredPacked | StoredCodes
"""Those that give a PackedTensor; they also have format, order and read_codes."""


@dataclass(frozen=True)
class QuantizedDirectory:
    """What a reader of one quant_method is given."""

    path: Path
    configuration: Mapping[str, Any]
    arrays: Mapping[str, StoredArray]
    metadata: Mapping[str, str]  # of all weight files


@dataclass(frozen=True)
class TensorMap:
    """A checkpoint's tensors."""

    path: Path
    entries: Mapping[str, Entry]

    def entry(self, name: str) -> Entry:
        """Raises: CheckpointError, naming tensors that look alike."""
        entry = self.entries.get(name)
        if entry is None:
            tail = name.rsplit(".", 2)[-2:]
            alike = [other for other in self.entries if other.endswith(".".join(tail))][:3]
            raise CheckpointError(
                "the checkpoint lacks a tensor",
                where=self.path,
                expected=name,
                found=f"{len(self.entries)} tensors, among them {', '.join(alike) or 'none alike'}",
            )
        return entry

    def read_float(self, name: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        """A tensor, or some of its rows, decoded to f32. Raises: CheckpointError."""
        return self.entry(name).read_float(rows)

    def slices(self, name: str, rows_at_once: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, weights) of some rows of a matrix at a time. Raises: CheckpointError."""
        rows = self.entry(name).shape[0]
        for begin in range(0, rows, rows_at_once):
            yield begin, self.read_float(name, slice(begin, min(begin + rows_at_once, rows)))

    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries.values())

    def check(self, plan: Plan) -> None:
        """Refuse a checkpoint that lacks a tensor of the plan or has it in another shape or beside
        others that the plan should have read.

        Raises: CheckpointError.
        """
        for spec in plan.tensors():
            entry = self.entry(spec.name)
            if tuple(entry.shape) != spec.shape:
                raise CheckpointError(
                    "a tensor does not have the shape its configuration implies",
                    where=f"{self.path}: {spec.name}",
                    expected=list(spec.shape),
                    found=list(entry.shape),
                )
            if not isinstance(entry, Quantized) and entry.dtype.name not in FLOATS:
                raise CheckpointError(
                    "a tensor is not of a float type",
                    where=f"{self.path}: {spec.name}",
                    expected=f"one of {', '.join(FLOATS)}",
                    found=entry.dtype.name,
                )
        self._check_embeddings(plan)
        check_unread(self.path, self.entries, plan, self.read_float)

    def _check_embeddings(self, plan: Plan) -> None:
        """Refuse float columns where rows are looked up and nothing is multiplied."""
        operations = (each for stage in plan.stages for each in stage.operations)
        for name in (each.weight for each in operations if isinstance(each, Embed)):
            entry = self.entry(name)
            if isinstance(entry, StoredPacked) and entry.columns is not None:
                raise CheckpointError(
                    "an embedding has no float columns", where=f"{self.path}: {name}"
                )


def refuse_float_columns(name: str, entry: Entry, container: str) -> None:
    """Raises: UsageError for a matrix whose float columns a container has no place for."""
    if isinstance(entry, StoredPacked) and entry.columns is not None:
        raise UsageError(
            f"{container} has no place for float columns beside codes",
            where=name,
            found=f"{len(entry.columns.places)} of {entry.shape[1]}",
            do="Export to safetensors or crumb, or quantize without --keep-columns",
        )
