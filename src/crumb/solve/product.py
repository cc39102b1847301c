"""A matrix product whose bits do not depend on the number of BLAS threads.

In: two matrices. Out: their f32 product. BLAS cuts a long inner dimension by its thread count, a
short one never; so the inner dimension is walked in runs of RUN, summed in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 128
"""Inner columns multiplied at once."""


def product(left: NDArray[np.float32], right: NDArray[Any]) -> NDArray[np.float32]:
    """left @ right in f32. Shapes: (rows, inner), (inner, columns) -> (rows, columns)."""
    total = np.zeros((left.shape[0], right.shape[1]), np.float32)
    for begin in range(0, left.shape[1], RUN):
        run = slice(begin, begin + RUN)
        total += left[:, run] @ right[run].astype(np.float32, copy=False)
    return total
