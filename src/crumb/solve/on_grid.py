"""Weights that lie on a format's grid already: recognised, and their codes taken as they are.

In: weights, a Format, the precision they were stored in. Out: codes and parameters that decode to
the very weights, or None. So are files decoded from GGUF, and checkpoints of quantization-aware
training. Looks for whole numbers of steps: the finest grid that a group spans, then the fp16 scale
(and minimum) that give each weight back. Super-blocks and tables are not looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import GroupParameters, decode_columns

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

SAMPLE_ROWS = 2
"""Rows that say no for the whole matrix."""

MOST_BITS = 6
"""Of a wider code a step is no coarser than what fp16 weights have anyway."""

NEAR_STEPS = (0, 1, -1)
"""Units of fp16 around the middle of the scales that explain a group."""


@dataclass
class _Groups:
    """All groups of some rows, (groups, width), and what is found of each."""

    weights: Floats
    codes: Codes  # (groups, width)
    scale: Floats  # (groups,)
    offset: Floats  # (groups,)
    open: NDArray[np.intp]  # groups that no grid fits yet


def codes_on_grid(
    weights: Floats, format: Format, dtype: np.dtype[Any]
) -> tuple[Codes, GroupParameters] | None:
    """Codes and parameters that decode to these weights, rounded to their dtype, or None.

    Shapes: weights (rows, columns) -> codes (rows, columns).
    """
    rows, columns = weights.shape
    width = format.group_width(columns)
    plain = format.row.super_block is None and format.row.table is None
    if not plain or format.bits > MOST_BITS or columns % width:
        return None
    if rows > SAMPLE_ROWS and codes_on_grid(weights[:SAMPLE_ROWS], format, dtype) is None:
        return None
    lying = _search(weights.reshape(-1, width), format, dtype)
    if lying is None:
        return None
    groups = (rows, columns // width)
    scale = lying.scale.reshape(groups).astype(np.float16)
    offset = lying.offset.reshape(groups)
    parameters = GroupParameters(scale)
    if format.zero is ZeroKind.VARIABLE:
        parameters = GroupParameters(scale, zero_point=offset.astype(np.uint8))
    elif format.zero is ZeroKind.MINIMUM:
        parameters = GroupParameters(scale, minimum=offset.astype(np.float16))
    return lying.codes.reshape(rows, columns), parameters


def _search(weights: Floats, format: Format, dtype: np.dtype[Any]) -> _Groups | None:
    """The grid of every group, the finest span first; None as soon as one cannot have any."""
    count = len(weights)
    groups = _Groups(
        weights,
        np.zeros(weights.shape, np.uint8),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        np.arange(count),
    )
    _take_constant(groups, format)
    for span in _spans(format):
        if not len(groups.open):
            return groups
        _try(groups, format, dtype, np.float32(span))
    return None if len(groups.open) else groups


def _spans(format: Format) -> list[int]:
    """Steps from a group's lowest to its highest weight; of a fixed zero, to the farthest from 0.

    There they have the sign of that weight's level.
    """
    if format.zero is not ZeroKind.FIXED:
        return list(range(format.row.largest_code, 0, -1))
    return [sign * steps for steps in range(format.fixed_zero_point, 0, -1) for sign in (-1, 1)]


def _take_constant(groups: _Groups, format: Format) -> None:
    """Groups of one value: its minimum, or 0, whose scale is 0."""
    low, high = groups.weights.min(1), groups.weights.max(1)
    alike = low == high
    if format.zero is not ZeroKind.MINIMUM:
        alike &= low == 0
    zero = format.fixed_zero_point if format.zero is ZeroKind.FIXED else 0
    groups.codes[alike], groups.offset[alike] = zero, low[alike] if zero == 0 else zero
    groups.open = np.flatnonzero(~alike)


def _try(groups: _Groups, format: Format, dtype: np.dtype[Any], span: np.float32) -> None:
    """Take the groups whose weights so many steps explain, each to the last bit."""
    weights, zero = groups.weights[groups.open], format.zero
    low, high = weights.min(1), weights.max(1)
    with np.errstate(all="ignore"):  # what is not finite fits nothing
        if zero is ZeroKind.FIXED:
            scale = np.where(high > -low, high, low) / span
            offset = np.full_like(scale, format.fixed_zero_point)
        elif zero is ZeroKind.VARIABLE:  # 0 is one of the values
            scale = (np.maximum(high, 0) - np.minimum(low, 0)) / span
            offset = np.rint(-np.minimum(low, 0) / scale)
        else:
            scale = (high - low) / span
            offset = low.astype(np.float16).astype(np.float32)
        column = offset[:, None]
        base, shift = (column, 0) if zero is ZeroKind.MINIMUM else (np.float32(0), column)
        levels = np.rint((weights - base) / scale[:, None])
        middle = _middle(weights - base, levels, _half_unit(weights, dtype))
        inside = np.isfinite(levels) & np.isfinite(column) & (column <= _most_offset(format))
        codes = np.clip(np.where(inside, levels + shift, 0), 0, format.row.largest_code)
        codes = codes.astype(np.uint8)
        fits = np.zeros(len(weights), np.bool_)
        for near in NEAR_STEPS:
            near_scale = _moved(middle.astype(np.float16), near).astype(np.float32)
            decoded = decode_columns(codes, near_scale[:, None], column, zero)
            same = (inside & (decoded.astype(dtype).astype(np.float32) == weights)).all(1)
            scale = np.where(same & ~fits, near_scale, scale)
            fits |= same
    taken = groups.open[fits]
    groups.codes[taken] = codes[fits]
    groups.scale[taken], groups.offset[taken] = scale[fits], offset[fits]
    groups.open = groups.open[~fits]


def _half_unit(weights: Floats, dtype: np.dtype[Any]) -> Floats:
    """How far a weight may lie from what was stored of it."""
    precision = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    exponent = np.frexp(np.abs(weights))[1] - 1
    unit = np.ldexp(np.float32(precision.eps), exponent)
    half: Floats = np.maximum(unit, np.float32(precision.smallest_subnormal)) / np.float32(2)
    return half


def _middle(values: Floats, levels: Floats, half: Floats) -> Floats:
    """The middle of the scales for which every level is its value, give or take half a unit."""
    size = np.abs(levels)
    along = np.where(levels < 0, -values, values)
    least = np.where(size > 0, (along - half) / size, -np.inf).max(1)
    most = np.where(size > 0, (along + half) / size, np.inf).min(1)
    middle: Floats = ((least + most) / 2).astype(np.float32)
    return middle


def _most_offset(format: Format) -> float:
    return np.inf if format.zero is ZeroKind.MINIMUM else float(format.row.largest_code)


def _moved(half: NDArray[np.float16], steps: int) -> NDArray[np.float16]:
    """So many units of fp16 away."""
    towards = np.float16(np.inf if steps > 0 else -np.inf)
    for _ in range(abs(steps)):
        half = np.nextafter(half, towards)
    return half
