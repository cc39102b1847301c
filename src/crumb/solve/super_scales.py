"""Scales of super-blocks: a whole number for each group, times one fp16 for the super-block.

In: weights, the importance of each column, a Format of super-blocks, and each group's scale and
offset without that restriction. Out: GroupParameters on the grid that the format stores.
For given codes a group's error is quadratic in its scale and its minimum: some fp16 numbers are
tried against that, each fitted in closed form, then the codes are chosen again.
A smaller super-block at the end of a row is filled up with columns that do not count.
Refuses values that fp16 cannot hold. Arrays here have the axis that is summed first: it is short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import Floats, GroupParameters, levels_of
from crumb.formats.super_blocks import (
    Shared,
    block_of,
    divide,
    groups_of_block,
    in_blocks,
    inverse,
    share,
    stored,
)
from crumb.kernels.threads import parallel_map
from crumb.solve.problem import join_parameters

SHARES = (1.0, 0.93, 0.86, 1.07)
"""The largest group of a super-block is tried at these shares of its largest whole number.

Twenty shares and three rounds leave .3 to .6 % less error, and take three times as long.
"""

ROUNDS = {ZeroKind.FIXED: 1, ZeroKind.MINIMUM: 2}
"""Codes are chosen this often, on the grid found so far. (A second time: .02 to .3 % less error
without minima, .7 % with them.)"""

SEPARATE = np.float32(1e-3)
"""Below this share of spread in a group's codes its scale and minimum cannot be told apart."""

SLAB_ROWS = 128
"""Rows fitted at once, the same on every machine."""


@dataclass(frozen=True)
class Moments:
    """Sums over a group's columns, h their importance, q their codes less a fixed zero's."""

    h: Floats  # (1, groups), the others (rows, groups); q is a table's level, where there is one
    hq: Floats
    hqq: Floats
    hw: Floats
    hqw: Floats


def shared_scales(
    weights: Floats, importance: Floats, format: Format, scale: Floats, offset: Floats
) -> GroupParameters:
    """The best of the format's grid, found from each group's own scale and offset.

    Shapes: weights (rows, columns), importance (columns,), positive; scale and offset
    (rows, groups). Raises: SolveError.
    """

    columns = format.blocks(weights.shape[1]) * block_of(format).width
    groups = format.whole_groups(weights.shape[1])
    importance = _filled(importance[None], columns)

    def work(begin: int) -> GroupParameters:
        rows = slice(begin, begin + SLAB_ROWS)
        whole, own = _filled(weights[rows], columns), _filled(scale[rows], groups)
        return _fit_slab(whole, importance, format, own, _filled(offset[rows], groups))

    return join_parameters(parallel_map(work, range(0, len(weights), SLAB_ROWS)), axis=0)


def nearest_scales(format: Format, scale: Floats, offset: Floats) -> GroupParameters:
    """The format's grid nearest to scales and offsets (rows, groups), all groups alike.

    Raises: SolveError.
    """
    groups = -(-scale.shape[1] // groups_of_block(format)) * groups_of_block(format)
    scale, offset = _filled(scale, groups), _filled(offset, groups)
    alike = np.ones_like(scale)
    scales = _share(scale, alike, format)
    if format.zero is ZeroKind.FIXED:
        return stored(format, scales)
    return stored(format, scales, _share_minima(-offset, alike, format))


def _filled(matrix: Floats, columns: int) -> Floats:
    """With columns of 0 behind, until there are so many."""
    return np.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])))


def _fit_slab(
    weights: Floats, importance: Floats, format: Format, scale: Floats, offset: Floats
) -> GroupParameters:
    w = _group_first(weights, format.group_size)
    h = _group_first(importance, format.group_size)
    if format.zero is ZeroKind.MINIMUM:  # no minimum lies above 0
        scale = np.where(offset > 0, w.max(0) / np.float32(format.row.largest_code), scale)
        offset = np.minimum(offset, 0)
    scales: Shared | None = None
    minima: Shared | None = None
    for _ in range(ROUNDS[format.zero]):
        moments = _moments(w, h, format, scale, offset)
        if format.zero is ZeroKind.MINIMUM:
            minima = _fit_minima(moments, format, offset, minima)
            offset = -minima.product()
        scales = _fit_scales(moments, format, scale, offset, scales)
        scale = scales.product()
        if minima is not None:  # once more, each given the other
            targets = (scale * moments.hq - moments.hw) / moments.h
            minima = _share_minima(targets, moments.h + np.zeros_like(targets), format, minima)
            offset = -minima.product()
            scales = _fit_scales(moments, format, scale, offset, scales)
            scale = scales.product()
    assert scales is not None, "at least one round"
    if format.zero is ZeroKind.FIXED:
        scales = _settled(w, h, format, scales)
    return stored(format, scales, minima)


def _settled(w: Floats, h: Floats, format: Format, scales: Shared) -> Shared:
    """Each group's whole number or one beside it, by the error that is left; then the scale anew.

    Codes are chosen for each, where `share` took those of a scale that is no whole number.
    """
    block, zero = block_of(format), np.zeros_like(scales.whole)
    unit = np.repeat(scales.unit, groups_of_block(format), axis=1)
    whole, least = scales.whole, np.full_like(scales.whole, np.inf)
    for step in (0, -1, 1):
        tried = np.clip(scales.whole + np.float32(step), block.lowest, block.highest)
        moments = _moments(w, h, format, unit * tried, zero)
        with np.errstate(over="ignore", invalid="ignore"):
            missed = unit * tried * (unit * tried * moments.hqq - 2 * moments.hqw)
        better = missed < least
        whole, least = np.where(better, tried, whole), np.where(better, missed, least)
    moments = _moments(w, h, format, unit * whole, zero)
    pull, weight = whole * moments.hqw, whole * whole * moments.hqq
    with np.errstate(over="ignore"):
        fitted = divide(
            in_blocks(pull, format).sum(2), in_blocks(weight, format).sum(2), scales.unit
        )
        return Shared(fitted.astype(np.float16).astype(np.float32), whole)


def _group_first(matrix: Floats, width: int) -> Floats:
    """Shapes: (rows, n * width) -> (width, rows, n), contiguous."""
    return np.ascontiguousarray(matrix.reshape(len(matrix), -1, width).transpose(2, 0, 1))


def _moments(w: Floats, h: Floats, format: Format, scale: Floats, offset: Floats) -> Moments:
    """Sums over each group for the codes that this scale and offset give."""
    low, high = np.float32(0), np.float32(format.row.largest_code)
    if format.zero is ZeroKind.FIXED:
        low, high = low - format.fixed_zero_point, high - format.fixed_zero_point
        q = w * inverse(scale)
    else:
        q = w - offset
        q *= inverse(scale)
    if format.row.table is not None:
        levels, _ = levels_of(format.row)
        q = levels[np.searchsorted((levels[:-1] + levels[1:]) * np.float32(0.5), q)]
    else:
        np.clip(np.rint(q, out=q), low, high, out=q)
    hq, hw = h * q, h * w
    hqw = (hq * w).sum(0)
    return Moments(h.sum(0), hq.sum(0), np.multiply(hq, q, out=q).sum(0), hw.sum(0), hqw)


def _fit_scales(
    moments: Moments, format: Format, scale: Floats, offset: Floats, before: Shared | None
) -> Shared:
    """Scales for given minima; a fixed zero is in the codes already."""
    add = offset if format.zero is ZeroKind.MINIMUM else np.float32(0)
    targets = divide(moments.hqw - add * moments.hq, moments.hqq, scale)
    return _share(targets, moments.hqq, format, before)


def _fit_minima(moments: Moments, format: Format, offset: Floats, before: Shared | None) -> Shared:
    """Minima, each with the scale that is best beside it."""
    spread = moments.hqq * moments.h - np.square(moments.hq)
    apart = spread > SEPARATE * moments.hqq * moments.h
    below = np.where(apart, spread, np.float32(0))
    best = divide(moments.hqq * moments.hw - moments.hqw * moments.hq, below, offset)
    cost = np.maximum(divide(spread, moments.hqq, moments.h), 0)
    return _share_minima(-best, cost, format, before)


def _share_minima(
    targets: Floats, cost: Floats, format: Format, before: Shared | None = None
) -> Shared:
    """What is stored is taken off: a group whose weights are all above 0 begins at 0."""
    return _share(np.maximum(targets, 0), cost, format, before, lowest=0)


def _share(
    targets: Floats,
    cost: Floats,
    format: Format,
    before: Shared | None = None,
    lowest: int | None = None,
) -> Shared:
    """The nearest on the grid, around what was found before, if anything was.

    Shapes: targets, cost (rows, groups).
    """
    block = block_of(format)
    lowest = block.lowest if lowest is None else lowest
    tops = [part * end for part in SHARES for end in (lowest, block.highest) if end]
    targets, cost = in_blocks(targets, format), in_blocks(cost, format)
    return share(targets, cost, (lowest, block.highest), tops, before)
