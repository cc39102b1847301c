"""Rounding into GGUF's types: float weights, and the scales of a super-block's groups.

In: f32 weights (rows, in_features), or a number for each group. Out: codes and GroupParameters of
the type's Format, to nearest, with no statistics of the inputs; `solve` does better with them.
Refuses weights that are not finite, and scales that fp16 cannot hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crumb.errors import SolveError
from crumb.formats.catalog import Format, SuperBlock, ZeroKind
from crumb.formats.grid import (
    Codes,
    Floats,
    GroupParameters,
    decode_reference,
    encode_reference,
    group_of_column,
    make_parameters,
)
from crumb.formats.layouts.gguf_types import ScaleCode, find_type

HALF_EXPONENTS = (-24, 15)
"""The smallest and largest power of two that fp16 holds."""

Shared = tuple[Floats, Floats]
"""A unit for each super-block (rows, blocks), an fp16 number's value; whole numbers (rows, groups)
that multiply it."""


def quantize_floats(weights: Floats, type_name: str) -> tuple[Codes, GroupParameters]:
    """Round to nearest into any type with codes. Rows are independent: hand over strips of them.

    Raises: SolveError; UsageError for a width in no whole blocks.
    """
    row = find_type(type_name)
    format = row.format
    assert format is not None, f"{type_name} has no codes; gguf_blocks.encode_floats writes it"
    row.blocks(weights.shape[1])
    if not np.isfinite(weights).all():
        raise SolveError("a weight is not finite", do="Check the checkpoint for overflow")
    if row.scale_code is ScaleCode.EXPONENT:
        parameters = _powers_of_two(weights, format)
    elif format.zero is ZeroKind.MINIMUM:
        parameters = _spanning(weights, format)
    else:
        parameters = _reaching(weights, format)
    return nearest_codes(weights, parameters, format), parameters


def nearest_codes(weights: Floats, parameters: GroupParameters, format: Format) -> Codes:
    """The code of the nearest level, tables too. Shapes: (rows, in_features) to the same."""
    if format.row.table is None:
        return encode_reference(weights, parameters, format)
    scale = parameters.group_scale()[:, group_of_column(format, weights.shape[1])]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.where(scale == 0, np.float32(0), weights / scale)
    levels, code_of_level = np.unique(np.array(format.row.table, np.float32), return_index=True)
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, quotient)
    return code_of_level.astype(np.uint8)[nearest]


def share(
    wanted: Floats, cost: Floats, block: SuperBlock, lowest: int, tops: Sequence[int]
) -> Shared:
    """Units and whole numbers whose products are nearest to what is wanted.

    The units tried are those that give a super-block's largest group each of `tops`; the least sum
    of cost * square of what is missed wins.
    Shapes: wanted, cost (rows, blocks, groups of a block).
    """
    peak = extreme(wanted)
    unit = peak / np.float32(tops[0])  # where fp16 holds none, this one is refused later
    whole = np.zeros_like(wanted)
    least = np.full(peak.shape, np.inf, np.float32)
    for top in tops:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            tried = (peak / np.float32(top)).astype(np.float16).astype(np.float32)
            quotient = np.where(tried[..., None] == 0, np.float32(0), wanted / tried[..., None])
            number = np.clip(np.rint(quotient), lowest, block.highest)
            missed = (cost * np.square(number * tried[..., None] - wanted)).sum(axis=-1)
        better = missed < least
        least, unit = np.where(better, missed, least), np.where(better, tried, unit)
        np.copyto(whole, number, where=better[..., None])
    return unit, whole.reshape(len(whole), -1)


def stored_shares(format: Format, scales: Shared, minima: Shared | None = None) -> GroupParameters:
    """Super-block parameters. Raises: SolveError."""
    unit, sub_scale = scales
    if minima is None:
        halves = make_parameters(format, unit, np.zeros_like(unit))
        return replace(halves, sub_scale=sub_scale.astype(np.int8))
    least, sub_minimum = minima
    return replace(
        make_parameters(format, unit, least),
        sub_scale=sub_scale.astype(np.int8),
        sub_minimum=sub_minimum.astype(np.uint8),
    )


def _reaching(weights: Floats, format: Format) -> GroupParameters:
    """Fixed zero: the weight farthest from 0 takes the level farthest from 0.

    A byte's level -128 stays unused, for kernels that negate an int8.
    """
    table, block = format.row.table, format.row.super_block
    farthest = -format.fixed_zero_point if table is None else table[0]
    if format.bits == 8:
        farthest += 1
    scale = extreme(_groups(weights, format)) / np.float32(farthest)
    if block is None:
        return make_parameters(format, scale, np.zeros_like(scale))
    scale = _in_blocks(scale, format)
    return stored_shares(
        format, share(scale, np.ones_like(scale), block, block.lowest, [block.highest])
    )


def _spanning(weights: Floats, format: Format) -> GroupParameters:
    """A minimum: the levels span from the smallest weight to the largest."""
    groups, block = _groups(weights, format), format.row.super_block
    smallest, largest = groups.min(axis=2), groups.max(axis=2)
    if block is not None:  # a sub-minimum is never below 0, and is taken off
        smallest = np.minimum(smallest, np.float32(0))
    with np.errstate(over="ignore"):
        scale = (largest - smallest) / np.float32(format.row.largest_code)
    if block is None:
        return make_parameters(format, scale, smallest)
    scale, taken_off = _in_blocks(scale, format), _in_blocks(-smallest, format)
    alike, tops = np.ones_like(scale), [block.highest]
    return stored_shares(
        format, share(scale, alike, block, 0, tops), share(taken_off, alike, block, 0, tops)
    )


def _powers_of_two(weights: Floats, format: Format) -> GroupParameters:
    """Of two powers, one of which clips the largest weight, the one with less squared error."""
    table = format.row.table
    assert table is not None, "powers of two scale a table of small floats"
    groups = _groups(weights, format)
    farthest = np.abs(extreme(groups))
    _, above = np.frexp(farthest / np.float32(max(table)))
    if above.max(initial=0) - 1 > HALF_EXPONENTS[1]:
        raise SolveError(
            f"a weight is beyond the reach of {format.row.name}",
            expected=f"less than {max(table) << HALF_EXPONENTS[1] + 1}",
            found=float(farthest.max()),
        )
    tries, errors = [], []
    for exponent in (above, above - 1):
        power = np.ldexp(np.float32(1), np.clip(exponent, *HALF_EXPONENTS))
        tried = make_parameters(format, power, np.zeros_like(power))
        decoded = decode_reference(nearest_codes(weights, tried, format), tried, format)
        tries.append(tried.scale)
        errors.append(np.square(decoded - weights).reshape(groups.shape).sum(axis=2))
    return GroupParameters(np.where(errors[1] < errors[0], tries[1], tries[0]))


def _groups(weights: Floats, format: Format) -> Floats:
    """Shapes: (rows, in_features) -> (rows, groups, group_size)."""
    return weights.reshape(len(weights), -1, format.group_size)


def _in_blocks(groups: Floats, format: Format) -> Floats:
    """Shapes: (rows, groups) -> (rows, blocks, groups of a block)."""
    assert format.row.super_block is not None, "a format of super-blocks"
    return groups.reshape(len(groups), -1, format.row.super_block.width // format.group_size)


def extreme(values: Floats) -> Floats:
    """The value farthest from 0 along the last axis."""
    place = np.abs(values).argmax(axis=-1)
    return np.take_along_axis(values, place[..., None], axis=-1)[..., 0]
