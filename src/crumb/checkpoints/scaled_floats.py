"""Matrices of 8-bit floats with scales, as FP8 checkpoints hold them, read as f32.

In: an array of 8-bit floats and its scales: one for all, one a row, or one a block. Out: an entry
of floats: weight = stored float * scale, multiplied once in f32.
Refuses scales of another shape or type, and scales that are not finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.safetensors import NAMES, StoredArray
from crumb.checkpoints.tensor_map import StoredFloats
from crumb.errors import CheckpointError

EIGHT_BIT = ("float8_e4m3fn", "float8_e5m2")
SCALES = ("float32", "bfloat16", "float16", "float8_e8m0fnu")

Block = tuple[int, int]
"""Rows and columns that share a scale."""


def scaled_matrix(
    where: str, weight: StoredArray, scales: StoredArray, block: Block | None = None
) -> StoredFloats:
    """The entry of one matrix; without a block, one scale for all or one a row.

    Raises: CheckpointError.
    """
    rows, columns = weight.shape
    shape = (1, 1) if not scales.shape else (*scales.shape, 1)[:2]
    if block is None or shape == (1, 1):
        block = (rows, columns) if shape == (1, 1) else (1, columns)
    expected = (-(-rows // block[0]), -(-columns // block[1]))
    if shape != expected or len(scales.shape) > 2 or scales.dtype.name not in SCALES:
        raise CheckpointError(
            "scales that do not fit their matrix of 8-bit floats",
            where=where,
            expected=f"{' or '.join(SCALES)} {list(expected)}",
            found=f"{scales.dtype.name} {list(scales.shape)}",
        )
    matrix = ScaledMatrix(where, weight, scales, block)
    size = weight.size_bytes + scales.size_bytes
    return StoredFloats(
        np.dtype(np.float32), (rows, columns), size, NAMES[weight.dtype], matrix.read_rows
    )


@dataclass(frozen=True)
class ScaledMatrix:
    """weight = stored * scale, a scale for each block of rows and columns."""

    where: str
    weight: StoredArray
    scales: StoredArray
    block: Block

    def read_rows(self, rows: slice) -> NDArray[np.float32]:
        """Some rows. Raises: CheckpointError."""
        weights = self.weight.read(rows).astype(np.float32)
        height, width = self.block
        scales = self.scales.read().astype(np.float32).reshape(-1, -(-weights.shape[1] // width))
        if not np.isfinite(scales).all():
            raise CheckpointError(
                "a scale is not finite",
                where=self.where,
                expected="finite numbers",
                do="The file is damaged: copy or download it again",
            )
        of_row = np.arange(rows.start, rows.stop) // height
        weights *= np.repeat(scales[of_row], width, axis=1)[:, : weights.shape[1]]
        return weights
