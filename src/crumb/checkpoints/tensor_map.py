"""TensorMap: every tensor of a checkpoint by name, read one at a time.

In: entries from a container reader. Out: float arrays, packed tensors, or rows in f32; read, or
mapped as they lie in the file.
Refuses names that are missing and shapes that do not follow from the Plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.checkpoints.safetensors import StoredArray
from crumb.errors import CheckpointError
from crumb.formats.catalog import Format
from crumb.formats.layouts.tile import TILE_ROWS, tiles_of_rows
from crumb.formats.packed_tensor import PackedTensor, assemble
from crumb.kernels.decode import decode

FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class StoredPacked:
    """Where a quantized matrix lies."""

    format: Format
    shape: tuple[int, int]  # (out_features, in_features)
    tiles: StoredArray

    @property
    def size_bytes(self) -> int:
        return self.tiles.size_bytes

    def read(self, where: str) -> PackedTensor:
        """The matrix in memory. Raises: CheckpointError."""
        return assemble(self.format, *self.shape, self.tiles.read(), where)

    def map(self, where: str) -> PackedTensor:
        """The matrix as it lies in the file. Raises: CheckpointError."""
        return assemble(self.format, *self.shape, self.tiles.map(), where)

    def read_float(self, rows: slice, where: str) -> NDArray[np.float32]:
        """Some rows in f32; only the tiles that hold them are read. Raises: CheckpointError."""
        begin, end, _ = rows.indices(self.shape[0])
        tiles = tiles_of_rows(begin, max(begin, end))
        first_row = TILE_ROWS * tiles.start
        count = min(TILE_ROWS * tiles.stop, self.shape[0]) - first_row
        part = assemble(self.format, count, self.shape[1], self.tiles.read(tiles), where)
        return decode(part)[begin - first_row : end - first_row]


@dataclass(frozen=True)
class TensorMap:
    """A checkpoint's tensors."""

    path: Path
    entries: Mapping[str, StoredArray | StoredPacked]

    def entry(self, name: str) -> StoredArray | StoredPacked:
        """Raises: CheckpointError, naming tensors that look alike."""
        found = self.entries.get(name)
        if found is None:
            tail = name.rsplit(".", 2)[-2:]
            alike = [known for known in self.entries if known.endswith(".".join(tail))][:3]
            raise CheckpointError(
                "the checkpoint lacks a tensor",
                where=self.path,
                expected=name,
                found=f"{len(self.entries)} tensors, among them {', '.join(alike) or 'none alike'}",
            )
        return found

    def read(self, name: str) -> NDArray[Any] | PackedTensor:
        """A tensor as it is stored. Raises: CheckpointError."""
        entry = self.entry(name)
        return entry.read(name) if isinstance(entry, StoredPacked) else entry.read()

    def map(self, name: str) -> NDArray[Any] | PackedTensor:
        """A tensor as it lies in the file, read-only. Raises: CheckpointError."""
        entry = self.entry(name)
        return entry.map(name) if isinstance(entry, StoredPacked) else entry.map()

    def read_float(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """A tensor, or some of its rows, decoded to f32. Raises: CheckpointError."""
        entry = self.entry(name)
        if isinstance(entry, StoredPacked):
            return entry.read_float(slice(None) if rows is None else rows, name)
        with np.errstate(over="ignore"):  # an f64 beyond f32 becomes infinite, which is refused
            return entry.read(rows).astype(np.float32, copy=False)

    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries.values())

    def check(self, plan: Plan) -> None:
        """Refuse a checkpoint that lacks a tensor of the plan or has it in another shape.

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
            if isinstance(entry, StoredArray) and entry.dtype.name not in FLOATS:
                raise CheckpointError(
                    "a tensor is not of a float type",
                    where=f"{self.path}: {spec.name}",
                    expected=f"one of {', '.join(FLOATS)}",
                    found=entry.dtype.name,
                )
