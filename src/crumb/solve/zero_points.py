"""Zero points that a container can hold: GPTQ's first version stores them less one, so not 0.

In: weights and the scale and zero point of each group. Out: the same, and where the zero point lies
below the lowest one, the best grid there: shrunk extremes, each refitted in closed form.
Refuses nothing. Such groups have no weight below 0; with the zero point at 1 a code is lost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import Format
from crumb.formats.grid import encode_columns
from crumb.kernels.grid_search import SHRINKS

Floats = NDArray[np.float32]


def raise_zero_points(
    weights: Floats,
    importance: Floats,
    format: Format,
    grid: tuple[Floats, Floats],
    lowest: int,
) -> tuple[Floats, Floats]:
    """Scale and zero point of each group, none below the lowest.

    Shapes: weights (rows, columns), importance (columns,), found two of (rows, groups).
    """
    scale, zero_point = (part.copy() for part in grid)
    width = format.group_width(weights.shape[1])
    for group in np.flatnonzero((zero_point < lowest).any(0)):
        rows = np.flatnonzero(zero_point[:, group] < lowest)
        columns = slice(group * width, (group + 1) * width)
        scale[rows, group] = _fit(weights[rows, columns], importance[columns], format, lowest)
        zero_point[rows, group] = lowest
    return scale, zero_point


def _fit(weights: Floats, importance: Floats, format: Format, zero_point: int) -> Floats:
    """The best scale of each row for this zero point, (rows,)."""
    offset, largest = np.array([zero_point], np.float32), format.row.largest_code

    def levels(scale: Floats) -> Floats:
        codes = encode_columns(weights, scale[:, None], offset, largest, format.zero)
        above: Floats = codes.astype(np.float32) - offset
        return above

    reach: Floats = np.maximum(weights.max(1) / (largest - offset), -weights.min(1) / offset)
    best, least = reach, np.full(len(weights), np.inf, np.float32)
    for shrink in SHRINKS:
        level = levels(shrink * reach)
        squares = (importance * level * level).sum(1)
        some = squares > 0
        fitted = (importance * level * weights).sum(1) / np.where(some, squares, 1)
        fitted = np.where(some, fitted, reach)
        missed = weights - fitted[:, None] * levels(fitted)
        error = (importance * np.square(missed)).sum(1)
        best, least = np.where(error < least, fitted, best), np.minimum(error, least)
    return best
