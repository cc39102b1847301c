"""A matrix product on all processors whose bits do not depend on their number.

In: two matrices. Out: their f32 product. Slices of ROWS rows share the processors, each on one
BLAS thread. The slices are the same on every machine: BLAS chooses its kernel by the shape it is
given, so the bits of a row do depend on how many rows lie beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.kernels.threads import parallel_map

ROWS = 128
"""Rows multiplied at once."""


def product(left: NDArray[np.float32], right: NDArray[Any]) -> NDArray[np.float32]:
    """left @ right in f32. Shapes: (rows, inner), (inner, columns) -> (rows, columns)."""
    right = right.astype(np.float32, copy=False)
    result = np.zeros((left.shape[0], right.shape[1]), np.float32)

    def work(begin: int) -> None:
        rows = slice(begin, begin + ROWS)
        result[rows] = left[rows] @ right

    parallel_map(work, range(0, left.shape[0], ROWS))
    return result
