"""Rounding float weights into GGUF's types.

In: f32 weights (rows, in_features). Out: codes and GroupParameters of the type's Format, to
nearest, with no statistics of the inputs; `solve` does better with them.
Refuses weights that are not finite, and scales that fp16 cannot hold.
"""

from __future__ import annotations

import numpy as np

from crumb.errors import SolveError
from crumb.formats.catalog import Format, ScaleKind, ZeroKind
from crumb.formats.grid import (
    Codes,
    Floats,
    GroupParameters,
    encode_reference,
    make_parameters,
)
from crumb.formats.layouts.gguf_types import find_type
from crumb.formats.powers_of_two import power_scales
from crumb.formats.super_blocks import extreme, in_blocks, share, stored


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
    if format.row.scale is ScaleKind.POWER:
        powers = power_scales(weights, np.ones(weights.shape[1], np.float32), format)
        parameters = make_parameters(format, powers, powers)
    elif format.zero is ZeroKind.MINIMUM:
        parameters = _spanning(weights, format)
    else:
        parameters = _reaching(weights, format)
    return encode_reference(weights, parameters, format), parameters


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
    scale, ends = in_blocks(scale, format), (block.lowest, block.highest)
    return stored(format, share(scale, np.ones_like(scale), ends, [block.highest]))


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
    ends, tops = (0, block.highest), [block.highest]
    scale, taken_off = in_blocks(scale, format), in_blocks(-smallest, format)
    alike = np.ones_like(scale)
    return stored(format, share(scale, alike, ends, tops), share(taken_off, alike, ends, tops))


def _groups(weights: Floats, format: Format) -> Floats:
    """Shapes: (rows, in_features) -> (rows, groups, group_size)."""
    return weights.reshape(len(weights), -1, format.group_size)
