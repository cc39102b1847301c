"""Scales of super-blocks: a whole number for each group, times one fp16 for the super-block.

In: weights, the importance of each column, a Format of super-blocks, and each group's scale and
offset without that restriction. Out: GroupParameters on the grid that the format stores.
For given codes a group's error is quadratic in its scale and its minimum: some fp16 numbers are
tried against that, each fitted in closed form, then the codes are chosen again.
Refuses values that fp16 cannot hold. Arrays here have the axis that is summed first: it is short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import Format, SuperBlock, ZeroKind
from crumb.formats.grid import GroupParameters, make_parameters
from crumb.kernels.threads import parallel_map
from crumb.solve.problem import join_parameters

Floats = NDArray[np.float32]

SHARES = (1.0, 0.93, 0.86, 1.07)
"""The largest group of a super-block is tried at these shares of its largest whole number.

Twenty shares and three rounds leave .3 to .6 % less error, and take three times as long.
"""

ROUNDS = {ZeroKind.FIXED: 1, ZeroKind.MINIMUM: 2}
"""Codes are chosen this often, on the grid found so far. (A second time: .02 to .3 % less error
without minima, .7 % with them.)"""

SEPARATE = np.float32(1e-3)
"""Below this share of spread in a group's codes its scale and minimum cannot be told apart."""

SMALLEST = np.finfo(np.float32).tiny

SLAB_ROWS = 128
"""Rows fitted at once, the same on every machine."""


@dataclass(frozen=True)
class Shared:
    """Whole numbers of groups, and the fp16 number of their super-block that multiplies them."""

    unit: Floats  # (rows, blocks), an fp16 number's value
    whole: Floats  # (rows, groups)

    def product(self) -> Floats:
        """What each group gets, exactly, (rows, groups)."""
        per_block = self.whole.shape[1] // self.unit.shape[1]
        return np.repeat(self.unit, per_block, axis=1) * self.whole


@dataclass(frozen=True)
class Moments:
    """Sums over a group's columns, h their importance, q their codes less a fixed zero's."""

    h: Floats  # (1, groups), the others (rows, groups)
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

    def work(begin: int) -> GroupParameters:
        rows = slice(begin, begin + SLAB_ROWS)
        return _fit_slab(weights[rows], importance, format, scale[rows], offset[rows])

    return join_parameters(parallel_map(work, range(0, len(weights), SLAB_ROWS)), axis=0)


def nearest_scales(format: Format, scale: Floats, offset: Floats) -> GroupParameters:
    """The format's grid nearest to scales and offsets (rows, groups), all groups alike.

    Raises: SolveError.
    """
    alike = np.ones_like(scale)
    scales = _share(scale, alike, format)
    if format.zero is ZeroKind.FIXED:
        return _stored(format, scales, None)
    return _stored(format, scales, _share_minima(-offset, alike, format))


def _fit_slab(
    weights: Floats, importance: Floats, format: Format, scale: Floats, offset: Floats
) -> GroupParameters:
    w = _group_first(weights, format.group_size)
    h = _group_first(importance[None], format.group_size)
    if format.zero is ZeroKind.MINIMUM:  # no minimum lies above 0
        scale = np.where(offset > 0, w.max(0) / np.float32(format.row.largest_code), scale)
        offset = np.minimum(offset, 0)
    scales: Shared | None = None
    minima: Shared | None = None
    for _ in range(ROUNDS[format.zero]):
        found = _moments(w, h, format, scale, offset)
        if format.zero is ZeroKind.MINIMUM:
            minima = _fit_minima(found, format, offset, minima)
            offset = -minima.product()
        scales = _fit_scales(found, format, scale, offset, scales)
        scale = scales.product()
        if minima is not None:  # once more, each given the other
            wanted = (scale * found.hq - found.hw) / found.h
            minima = _share_minima(wanted, found.h + np.zeros_like(wanted), format, minima)
            offset = -minima.product()
            scales = _fit_scales(found, format, scale, offset, scales)
            scale = scales.product()
    assert scales is not None, "at least one round"
    return _stored(format, scales, minima)


def _group_first(matrix: Floats, width: int) -> Floats:
    """Shapes: (rows, n * width) -> (width, rows, n), contiguous."""
    return np.ascontiguousarray(matrix.reshape(len(matrix), -1, width).transpose(2, 0, 1))


def _moments(w: Floats, h: Floats, format: Format, scale: Floats, offset: Floats) -> Moments:
    """Sums over each group for the codes that this scale and offset give."""
    low, high = np.float32(0), np.float32(format.row.largest_code)
    if format.zero is ZeroKind.FIXED:
        low, high = low - format.fixed_zero_point, high - format.fixed_zero_point
        q = w * _inverse(scale)
    else:
        q = w - offset
        q *= _inverse(scale)
    np.clip(np.rint(q, out=q), low, high, out=q)
    hq, hw = h * q, h * w
    hqw = (hq * w).sum(0)
    return Moments(h.sum(0), hq.sum(0), np.multiply(hq, q, out=q).sum(0), hw.sum(0), hqw)


def _fit_scales(
    found: Moments, format: Format, scale: Floats, offset: Floats, before: Shared | None
) -> Shared:
    """Scales for given minima; a fixed zero is in the codes already."""
    add = offset if format.zero is ZeroKind.MINIMUM else np.float32(0)
    wanted = _divide(found.hqw - add * found.hq, found.hqq, scale)
    return _share(wanted, found.hqq, format, before)


def _fit_minima(found: Moments, format: Format, offset: Floats, before: Shared | None) -> Shared:
    """Minima, each with the scale that is best beside it."""
    spread = found.hqq * found.h - np.square(found.hq)
    apart = spread > SEPARATE * found.hqq * found.h
    best = _divide(found.hqq * found.hw - found.hqw * found.hq, np.where(apart, spread, 0), offset)
    cost = np.maximum(_divide(spread, found.hqq, found.h), 0)
    return _share_minima(-best, cost, format, before)


def _share_minima(
    wanted: Floats, cost: Floats, format: Format, before: Shared | None = None
) -> Shared:
    """What is stored is taken off: a group whose weights are all above 0 begins at 0."""
    return _share(np.maximum(wanted, 0), cost, format, before, lowest=0)


def _share(
    wanted: Floats,
    cost: Floats,
    format: Format,
    before: Shared | None = None,
    lowest: int | None = None,
) -> Shared:
    """fp16 and whole numbers whose products miss what is wanted by the least sum of cost squares.

    Looks around the fp16 numbers found before, if there are any. Shapes: wanted, cost
    (rows, groups).
    """
    block = _block(format)
    lowest = block.lowest if lowest is None else lowest
    wanted, cost = (_group_first(part, block.width // format.group_size) for part in (wanted, cost))
    peak = np.take_along_axis(wanted, np.abs(wanted).argmax(0)[None], 0)[0]
    ends = (lowest, block.highest) if lowest else (block.highest,)
    starts = [peak / np.float32(share * end) for share in SHARES for end in ends]
    if before is not None:
        starts = [before.unit]
    unit, least = starts[0], np.full(peak.shape, np.inf, np.float32)
    whole, costly = np.zeros_like(wanted), cost * wanted
    for start in starts:
        tried = _nearest(wanted, start, lowest, block.highest)
        fitted = _divide((costly * tried).sum(0), (cost * tried * tried).sum(0), start)
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = fitted.astype(np.float16).astype(np.float32)
            tried = _nearest(wanted, fitted, lowest, block.highest)
            missed = (cost * np.square(wanted - fitted * tried)).sum(0)
        better = missed < least
        least, unit = np.where(better, missed, least), np.where(better, fitted, unit)
        np.copyto(whole, tried, where=better)
    return Shared(unit, whole.transpose(1, 2, 0).reshape(len(unit), -1))


def _nearest(wanted: Floats, unit: Floats, lowest: int, highest: int) -> Floats:
    with np.errstate(over="ignore"):
        whole = wanted * _inverse(unit)
    return np.clip(np.rint(whole, out=whole), np.float32(lowest), np.float32(highest), out=whole)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, or 0 where that is beyond f32: such weights are nothing to fp16 either."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Floats = np.where(np.abs(scale) < SMALLEST, np.float32(0), 1 / scale)
    return inverse


def _divide(above: Any, below: Floats, otherwise: Any) -> Floats:
    """above / below, or the third where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: Floats = np.where(below == 0, np.float32(otherwise), above / below)
    return quotient


def _block(format: Format) -> SuperBlock:
    assert format.row.super_block is not None, "a format of super-blocks"
    return format.row.super_block


def _stored(format: Format, scales: Shared, minima: Shared | None) -> GroupParameters:
    """Raises: SolveError."""
    sub_scale = scales.whole.astype(np.int8)
    if minima is None:
        return replace(make_parameters(format, scales.unit, scales.unit), sub_scale=sub_scale)
    return replace(
        make_parameters(format, scales.unit, minima.unit),
        sub_scale=sub_scale,
        sub_minimum=minima.whole.astype(np.uint8),
    )
