"""Float columns: a few inputs of a quantized matrix that have float16 weights beside the codes.

In: the columns' places and their weights. Out: a record as containers store and kernels read it:
the weights of 16 rows lie together, as a tile's codes do. What a column's codes decode to and its
float weights are added. Refuses places that do not ascend within the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError
from crumb.formats.layouts.tile import TILE_ROWS, tile_count

HALF = np.dtype(np.float16)


@dataclass(frozen=True)
class FloatColumns:
    """Some columns of one matrix."""

    places: NDArray[np.int32]  # (count,) columns of the matrix, ascending
    tiles: NDArray[np.float16]  # (tiles, count, 16): of each tile and column, 16 rows

    @property
    def size_bytes(self) -> int:
        return self.places.nbytes + self.tiles.nbytes

    def weights(self, out_features: int) -> NDArray[np.float16]:
        """Row by row, (out_features, count)."""
        rows = self.tiles.transpose(0, 2, 1).reshape(-1, len(self.places))
        return rows[:out_features]

    def add_to(self, decoded: NDArray[np.float32]) -> None:
        """Add them to what codes decoded to, (out_features, in_features)."""
        decoded[:, self.places] += self.weights(len(decoded)).astype(np.float32)


def float_columns(places: NDArray[Any], weights: NDArray[np.float16]) -> FloatColumns:
    """From weights row by row, (out_features, count); rows are padded with 0 to whole tiles."""
    rows, count = weights.shape
    padded = np.zeros((TILE_ROWS * tile_count(rows), count), HALF)
    padded[:rows] = weights
    tiles = padded.reshape(-1, TILE_ROWS, count).transpose(0, 2, 1)
    return FloatColumns(places.astype(np.int32), np.ascontiguousarray(tiles))


def as_halves(weights: NDArray[np.float32]) -> NDArray[np.float16]:
    """The nearest float16, of what lies beyond them the farthest."""
    return np.clip(weights, -65504, 65504).astype(HALF)


def stack_columns(parts: list[FloatColumns]) -> FloatColumns:
    """Those of consecutive rows that were solved apart, whole tiles but for the last."""
    if len(parts) == 1:
        return parts[0]
    return FloatColumns(parts[0].places, np.concatenate([part.tiles for part in parts]))


def columns_shape(shape: tuple[int, int], count: int) -> tuple[int, int, int]:
    """Shape of the float16 array of so many columns of a matrix (out_features, in_features)."""
    return tile_count(shape[0]), count, TILE_ROWS


def check_places(places: NDArray[Any], in_features: int, where: str) -> NDArray[np.int32]:
    """The places of float columns as they were read. Raises: CheckpointError."""
    some = places.dtype == np.dtype("<i4") and places.ndim == 1 and len(places) > 0
    if some and (np.diff(places) > 0).all() and places[0] >= 0 and places[-1] < in_features:
        return places
    raise CheckpointError(
        "the float columns of a matrix are some of its inputs",
        where=where,
        expected=f"int32, ascending from 0 to {in_features - 1}",
        found=f"{places.dtype.name} {list(places.shape)}",
    )
