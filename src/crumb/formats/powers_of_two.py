"""Scales that are powers of two: of each group the one that leaves the least error.

In: weights, the importance of each column, a Format whose scales are powers of two. Out: the
scales. The usual power lets the largest weight and the farthest level have one exponent (OCP MX
specification 1.0, section 6.3); those around it are tried by the codes they give.
Refuses weights that the largest power does not reach. Powers are those that fp16 holds, 2^-24 to
2^15: each is one that MXFP4 stores in a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError
from crumb.formats.catalog import CodeRow, Format
from crumb.formats.grid import Floats, group_of_column, nearest_in_table

HALF_EXPONENTS = (-24, 15)
"""The smallest and largest power of two that fp16 holds."""

USUAL = (0,)
AROUND = (0, 1, -1, -2)
"""Exponents beside the usual one; from one more on, nothing is clipped. Of equals the first.

At three below are less than .2 % of the groups (Student's t with 3 degrees of freedom, importances
of four decades): they are left out.
"""


def power_scales(
    weights: Floats, importance: Floats, format: Format, steps: Sequence[int] = AROUND
) -> Floats:
    """The power of each group whose codes leave the least sum of h (w - decoded)^2.

    Shapes: weights (rows, columns), importance (columns,) -> (rows, groups). Raises: SolveError.
    """
    group = group_of_column(format, weights.shape[1])
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    usual = _usual_exponents(np.maximum.reduceat(np.abs(weights), starts, axis=1), format.row)
    best, least = np.zeros(usual.shape, np.float32), np.full(usual.shape, np.inf, np.float32)
    table = np.array(format.row.table, np.float32)
    for step in steps:
        scale = np.ldexp(np.float32(1), np.clip(usual + step, *HALF_EXPONENTS))
        spread = scale[:, group]
        missed = weights - table[nearest_in_table(weights, spread, format.row)] * spread
        error = np.add.reduceat(np.square(missed) * importance, starts, axis=1)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best


def _usual_exponents(farthest: Floats, row: CodeRow) -> NDArray[np.int32]:
    """Of a group whose farthest weight is this far from 0. Raises: SolveError."""
    reach = row.farthest_level.bit_length() - 1
    exponent = np.frexp(farthest)[1] - 1 - reach
    if exponent.max(initial=0) > HALF_EXPONENTS[1]:
        raise SolveError(
            f"a weight is beyond the reach of {row.name}",
            expected=f"less than {1 << reach + HALF_EXPONENTS[1] + 1}",
            found=float(farthest.max()),
            do="Check the checkpoint's weights for overflow",
        )
    return exponent


def nearest_power(number: NDArray[np.float64]) -> NDArray[np.float64]:
    """The power of two nearest to each number, of two the lower; the smallest for those below."""
    smallest, largest = (2.0**exponent for exponent in HALF_EXPONENTS)
    within = np.clip(number, smallest, largest)
    fraction, exponent = np.frexp(within)
    powers: NDArray[Any] = np.ldexp(np.where(fraction > 0.75, 1.0, 0.5), exponent)
    return powers
