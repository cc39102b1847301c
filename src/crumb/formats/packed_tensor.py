"""PackedTensor: a quantized matrix as it is stored and as kernels read it.

In: tiles, as formats/layouts/tile.py lays them out. Out: a record that a container writes or maps
as it lies. `kernels.tile` gives its codes and parameters, `kernels.decode` its weights.
Refuses tiles whose shape or type does not follow from the format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError
from crumb.formats.catalog import Format
from crumb.formats.float_columns import FloatColumns, stack_columns
from crumb.formats.layouts.tile import TILE_ROWS, tile_bytes, tile_count


@dataclass(frozen=True)
class PackedTensor:
    """One quantized matrix."""

    format: Format
    out_features: int
    in_features: int
    tiles: NDArray[np.uint8]  # (tiles, tile_bytes), may be read-only
    columns: FloatColumns | None = None  # that are added to what the codes decode to

    @property
    def size_bytes(self) -> int:
        return self.tiles.nbytes + (0 if self.columns is None else self.columns.size_bytes)


def stored_shape(format: Format, out_features: int, in_features: int) -> tuple[int, int]:
    """Shape of the uint8 array that a matrix of this format is stored as: (tiles, tile_bytes)."""
    return tile_count(out_features), tile_bytes(format, in_features)


def check_stored(
    format: Format,
    shape: tuple[int, int],
    found: tuple[tuple[int, ...], np.dtype[Any]],
    where: str,
) -> None:
    """Refuse an array (its shape and dtype) that does not follow from format and matrix shape.

    Raises: CheckpointError.
    """
    if shape[1] < 1:
        raise CheckpointError("a packed matrix without columns", where=where, found=shape[1])
    expected = stored_shape(format, *shape)
    if found != (expected, np.dtype(np.uint8)):
        raise CheckpointError(
            f"a stored array does not follow from {format.name}",
            where=where,
            expected=f"uint8 {expected} for a matrix of {shape[0]} x {shape[1]}",
            found=f"{found[1].name} {found[0]}",
        )


def assemble(
    format: Format, out_features: int, in_features: int, tiles: NDArray[Any], where: str
) -> PackedTensor:
    """A PackedTensor from stored tiles, checked. Raises: CheckpointError."""
    check_stored(format, (out_features, in_features), (tiles.shape, tiles.dtype), where)
    return PackedTensor(format, out_features, in_features, tiles)


def stack_rows(parts: list[PackedTensor]) -> PackedTensor:
    """One tensor from consecutive rows that were packed apart, whole tiles but for the last."""
    first = parts[0]
    assert all(part.out_features % TILE_ROWS == 0 for part in parts[:-1]), "whole tiles"
    out_features = sum(part.out_features for part in parts)
    if len(parts) == 1:
        return first
    columns = [part.columns for part in parts if part.columns is not None]
    return replace(
        first,
        out_features=out_features,
        tiles=np.concatenate([part.tiles for part in parts]),
        columns=stack_columns(columns) if columns else None,
    )
