"""Float arrays of a directory to be written: as they are stored, or decoded and rounded.

In: entries of a checkpoint. Out: parts whose bytes are fetched when their turn comes; each then
tells what became of its tensor. Refuses weights that the float type does not hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.directory_writer import Part
from crumb.checkpoints.export_report import TensorReport, Told
from crumb.checkpoints.safetensors import ArrayToWrite, StoredArray
from crumb.checkpoints.tensor_map import Quantized, StoredFloats
from crumb.errors import SolveError

ROWS_AT_ONCE = 4096
"""Rows that are decoded together: a large embedding never lies in memory in f32."""


def plain_part(name: str, entry: StoredArray | StoredFloats, told: Told) -> Part:
    """A float tensor as it is."""

    def read() -> NDArray[Any]:
        told(TensorReport(name, entry.source, entry.dtype.name, exact=True))
        return entry.read()

    return Part(name, ArrayToWrite(entry.dtype, entry.shape, read))


def decoded_part(
    name: str, entry: Quantized | StoredFloats, dtype: np.dtype[Any], why: str, told: Told
) -> Part:
    """A matrix as floats of this type; `why` it does not stay as it is."""

    def read() -> NDArray[Any]:
        rounded = np.empty(entry.shape, dtype)
        moved, size = 0.0, 0.0
        for begin in range(0, entry.shape[0], ROWS_AT_ONCE):
            rows = slice(begin, min(begin + ROWS_AT_ONCE, entry.shape[0]))
            weights = entry.read_float(rows)
            rounded[rows] = as_float_type(weights, dtype, name)
            moved += squares(rounded[rows].astype(np.float32) - weights)
            size += squares(weights)
        change = (moved / size) ** 0.5 if moved else 0.0
        note = f"{why}: decoded, rounded to {dtype.name}" if moved else f"{why}: decoded"
        told(TensorReport(name, entry.source, dtype.name, not moved, change, note))
        return rounded

    return Part(name, ArrayToWrite(dtype, entry.shape, read))


def squares(values: NDArray[np.float32]) -> float:
    """Sum of squares in f64."""
    return float(np.sum(np.square(values, dtype=np.float64)))


def as_float_type(weights: NDArray[np.float32], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Weights rounded to a float type. Raises: SolveError where one does not fit."""
    with np.errstate(over="ignore"):
        rounded = weights.astype(dtype)
    if not np.isfinite(rounded).all():
        raise SolveError(
            f"a decoded weight does not fit {dtype.name}",
            where=name,
            found=float(np.abs(weights).max()),
        )
    return rounded
