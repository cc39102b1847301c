"""Fit each group's scale and offset to its weights, before any code is chosen.

In: weights, the importance of each column, a Format, minmax or search. Out: GroupParameters.
minmax, variable: scale = (max - min) / (2^b - 1), zero_point = round(-min / scale), 0 inside;
minmax, fixed: scale = 2 max|w| / (2^b - 1). Source: GPTQ's reference quantizer (arXiv 2210.17323).
Scales of super-blocks are then fitted to what their format stores (solve/super_scales.py).
Powers of two are searched by the codes they give (formats/powers_of_two.py).
Refuses scales that fp16 cannot hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError
from crumb.formats.catalog import Format, ScaleKind, ZeroKind
from crumb.formats.grid import GroupParameters, make_parameters
from crumb.formats.powers_of_two import AROUND, USUAL, power_scales
from crumb.kernels.grid_search import grid_search
from crumb.kernels.threads import parallel_map
from crumb.solve.problem import Scales, join_parameters
from crumb.solve.super_scales import SLAB_ROWS, nearest_scales, shared_scales
from crumb.solve.zero_points import raise_zero_points

Floats = NDArray[np.float32]

LARGEST_WEIGHT = 65504.0 * 256
"""The largest fp16 scale times the widest span of codes, an fp16 minimum included."""


def fit_scales(
    weights: Floats,
    importance: Floats,
    format: Format,
    scales: Scales,
    lowest_zero_point: int = 0,
) -> GroupParameters:
    """Parameters of every group. Shapes: weights (rows, columns), importance (columns,).

    Raises: SolveError.
    """
    _check_range(weights)
    importance = _positive(importance)
    by_search = scales is Scales.SEARCH
    if format.row.scale is ScaleKind.POWER:
        return _powers(weights, importance, format, AROUND if by_search else USUAL)
    grid = grid_search(weights, importance, format) if by_search else minmax(weights, format)
    if format.zero is ZeroKind.VARIABLE and lowest_zero_point:
        grid = raise_zero_points(weights, importance, format, grid, lowest_zero_point)
    if format.row.super_block is None:
        return make_parameters(format, *grid)
    if by_search:
        return shared_scales(weights, importance, format, *grid)
    return nearest_scales(format, *grid)


def _powers(
    weights: Floats, importance: Floats, format: Format, steps: tuple[int, ...]
) -> GroupParameters:
    """Rows do not depend on each other. Raises: SolveError."""

    def work(begin: int) -> GroupParameters:
        rows = weights[begin : begin + SLAB_ROWS]
        scale = power_scales(rows, importance, format, steps)
        return make_parameters(format, scale, scale)

    return join_parameters(parallel_map(work, range(0, len(weights), SLAB_ROWS)), axis=0)


def _check_range(weights: Floats) -> None:
    """Refuse weights that no fp16 scale reaches, before their squares overflow in the search."""
    largest = float(np.maximum(-weights.min(initial=0), weights.max(initial=0)))
    if largest > LARGEST_WEIGHT:
        raise SolveError(
            "the weights are too large for fp16 scales",
            expected=f"at most {LARGEST_WEIGHT:g}",
            found=largest,
            do="Check the checkpoint's weights for overflow",
        )


def _positive(importance: Floats) -> Floats:
    """Importance with mean 1, and no column quite without weight."""
    mean = np.float32(importance.mean())
    if not mean > 0:
        return np.ones_like(importance)
    positive: Floats = np.maximum(importance / mean, np.float32(1e-6))
    return positive


def minmax(weights: Floats, format: Format) -> tuple[Floats, Floats]:
    """Scale and offset from each group's extremes, two of (rows, groups)."""
    starts = np.arange(0, weights.shape[1], format.group_width(weights.shape[1]))
    low: Floats = np.minimum.reduceat(weights, starts, axis=1)
    high: Floats = np.maximum.reduceat(weights, starts, axis=1)
    largest = np.float32(format.row.largest_code)
    if format.row.table is not None:
        farthest = np.float32(max(map(abs, format.row.table)))
        reach: Floats = (np.maximum(-low, high) / farthest).astype(np.float32)
        return reach, np.zeros_like(reach)
    if format.zero is ZeroKind.FIXED:
        scale: Floats = (2 * np.maximum(-low, high) / largest).astype(np.float32)
        return scale, np.full_like(scale, format.fixed_zero_point)
    if format.zero is ZeroKind.MINIMUM:
        return ((high - low) / largest).astype(np.float32), low
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = ((high - low) / largest).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero_point = np.where(scale == 0, np.float32(0), np.rint(-low / scale))
    # Subnormal scales are so coarse that the quotient can pass the last code.
    return scale, np.minimum(zero_point, largest).astype(np.float32)
