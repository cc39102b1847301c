"""Which of our formats a GGUF type holds, and the way there: codes kept, scales kept or rounded.

In: codes and parameters of one format. Out: those of the type's format, and how much a weight
changed. Rows are independent, so a matrix may come in strips of rows.
Refuses a pair of format and type for which the codes cannot be kept; `gguf_rounding` starts from
floats instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError
from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import (
    Codes,
    Floats,
    GroupParameters,
    decode_reference,
    group_of_column,
    make_parameters,
)
from crumb.formats.layouts.gguf_types import GGUF_TYPES, GgufType, find_type
from crumb.formats.super_blocks import Shared, block_of, extreme, share, stored

_FIXED, _VARIABLE, _MINIMUM = ZeroKind.FIXED, ZeroKind.VARIABLE, ZeroKind.MINIMUM

EXACT: dict[tuple[str, ZeroKind], str] = {
    (row.format.row.name, row.format.zero): row.name for row in GGUF_TYPES.values() if row.format
}
"""A row of the catalog and its zero -> the type with the same codes; groups may be wider."""

WIDER: dict[tuple[str, ZeroKind], str] = {
    ("int2", _FIXED): "Q4_0",
    ("int3", _FIXED): "Q4_0",
    ("int6", _FIXED): "Q8_0",
    ("int2", _VARIABLE): "Q4_0",
    ("int3", _VARIABLE): "Q4_0",
    ("int4", _VARIABLE): "Q5_0",
    ("int5", _VARIABLE): "Q8_0",
    ("int6", _VARIABLE): "Q8_0",
    ("int2", _MINIMUM): "Q4_1",
    ("int3", _MINIMUM): "Q4_1",
}
"""The smallest larger type whose codes hold code - zero_point, or beside a minimum the code."""

ROUNDED: dict[tuple[str, ZeroKind], str] = {
    ("int3", _FIXED): "Q3_K",
    ("int6", _FIXED): "Q6_K",
    ("int2", _VARIABLE): "Q2_K",
    ("int4", _VARIABLE): "Q4_K",
    ("int5", _VARIABLE): "Q5_K",
    ("int2", _MINIMUM): "Q2_K",
    ("int4", _MINIMUM): "Q4_K",
    ("int5", _MINIMUM): "Q5_K",
}
"""The type that keeps the codes and rounds each scale, and each minimum, to its super-block."""

TYPE_OF_BITS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0"}
"""The type that a number of bits means, where nothing else says which."""

NARROW = {
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
"""A type -> the one in its place where a row is no multiple of its block.

As llama.cpp's quantizer has it, but for Q2_K and Q3_K: it takes IQ4_NL, which has no solver here.
"""

PLAIN = "F16"
"""Where a row is no multiple of 32 either."""


def exact_type(format: Format, in_features: int) -> str | None:
    """The type that holds this format at its own width, every weight unchanged."""
    return _if_it_fits(EXACT, format, in_features)


def wider_exact_type(format: Format, in_features: int) -> str | None:
    """The larger type that holds this format, every weight unchanged.

    A variable zero_point must be a code, as every solver here chooses it; else `convert` refuses.
    """
    return _if_it_fits(WIDER, format, in_features)


def rounded_type(format: Format, in_features: int) -> str | None:
    """The type that keeps this format's codes and rounds its scales."""
    return _if_it_fits(ROUNDED, format, in_features)


def that_fits(type_name: str, in_features: int) -> str:
    """A type, or the one in its place for rows that are no multiple of its block."""
    while in_features % GGUF_TYPES[type_name].block_weights:
        type_name = NARROW.get(type_name, PLAIN)
    return type_name


def _if_it_fits(
    table: dict[tuple[str, ZeroKind], str], format: Format, in_features: int
) -> str | None:
    name = table.get((format.row.name, format.zero))
    return name if name and _groups_line_up(format, GGUF_TYPES[name], in_features) else None


def _groups_line_up(format: Format, row: GgufType, in_features: int) -> bool:
    """Whether blocks are whole, and each group of the type lies in one group of the format."""
    assert row.format is not None, "a type with codes"
    group_width = format.group_width(in_features)
    return in_features % row.block_weights == 0 and group_width % row.format.group_size == 0


def convert(
    codes: Codes, parameters: GroupParameters, format: Format, type_name: str
) -> tuple[Codes, GroupParameters, float]:
    """Codes and parameters of the type's format, and the largest change of a weight.

    The change is a share of the largest weight of its block; 0 means that every weight is equal.
    Raises: UsageError where the codes cannot be kept, SolveError where fp16 overflows.
    """
    row = find_type(type_name)
    target, in_features = row.format, codes.shape[1]
    if target == format:
        row.blocks(in_features)
        return codes, parameters, 0.0
    if target is None or not _groups_line_up(format, row, in_features):
        raise UsageError(
            f"groups of {format.name} do not line up with the blocks of {type_name}",
            expected=f"groups and inputs divisible by {row.block_weights}",
            found=f"{in_features} inputs",
            do="Convert the weights instead of the codes",
        )
    gains_zero = format.zero is _MINIMUM and target.zero is not _MINIMUM
    if format.row.table or target.row.table or format.row.super_block or gains_zero:
        raise _cannot_keep(format, type_name)
    keep = _keep_levels if target.zero is _FIXED else _keep_codes
    same = keep(codes, parameters, format, target)
    if same.codes.min(initial=0) < 0 or same.codes.max(initial=0) > target.row.largest_code:
        raise _cannot_keep(format, type_name)
    if target.row.super_block is not None:
        target_parameters = _round_into_super_blocks(same, target)
    else:
        target_parameters = make_parameters(target, same.scale, same.offset)
    result = same.codes.astype(np.uint8), target_parameters
    before = decode_reference(codes, parameters, format)
    return *result, _largest_change(before, decode_reference(*result, target), row.block_weights)


@dataclass(frozen=True)
class Kept:
    """The weights of a matrix, code for code, in the shape of the target; scales not yet rounded.

    A part is as many columns as share a scale within the target's block.
    """

    codes: NDArray[np.int16]  # (rows, in_features)
    scale: Floats  # (rows, parts)
    offset: Floats  # (rows, parts), a minimum; 0 with a fixed zero

    def levels(self, zero_point: int) -> Floats:
        """Codes less the zero, (rows, parts, columns of a part)."""
        levels = (self.codes - np.int16(zero_point)).astype(np.float32)
        return levels.reshape(*self.scale.shape, -1)


def _keep_levels(codes: Codes, parameters: GroupParameters, format: Format, target: Format) -> Kept:
    """The zero moves to the target's fixed one, and all codes with it."""
    group = group_of_column(format, codes.shape[1])
    moved_by = target.fixed_zero_point - parameters.offset(format).astype(np.int16)
    scale = parameters.group_scale()[:, group[:: _part_width(format, target, codes.shape[1])]]
    return Kept(codes + moved_by[:, group], scale, np.zeros_like(scale))


def _keep_codes(codes: Codes, parameters: GroupParameters, format: Format, target: Format) -> Kept:
    """The zero becomes a minimum."""
    in_features = codes.shape[1]
    scale, offset = parameters.group_scale(), parameters.offset(format)
    if format.zero is not _MINIMUM:
        offset = -(scale * offset)
    width = _part_width(format, target, in_features)
    part = group_of_column(format, in_features)[::width]
    same = Kept(codes.astype(np.int16), scale[:, part], offset[:, part])
    if target.row.super_block is None:
        return same
    per_block = target.row.super_block.width // width
    return _counted_one_way(same, per_block, format.row.largest_code)


def _counted_one_way(same: Kept, per_block: int, largest_code: int) -> Kept:
    """Give all scales of a super-block one sign. A group whose scale had the other sign is turned:
    its codes count down from the largest."""
    rows, parts = same.scale.shape
    peak = extreme(same.scale.reshape(rows, -1, per_block))
    backwards = same.scale * np.repeat(peak, per_block, axis=1) < 0
    turned = np.where(
        np.repeat(backwards, same.codes.shape[1] // parts, axis=1),
        np.int16(largest_code) - same.codes,
        same.codes,
    )
    other_end = same.offset + same.scale * np.float32(largest_code)
    return Kept(
        turned,
        np.where(backwards, -same.scale, same.scale),
        np.where(backwards, other_end, same.offset),
    )


def _part_width(format: Format, target: Format, in_features: int) -> int:
    """Columns that share a scale in the format, within a block of the target."""
    return gcd(format.group_width(in_features), target.block_width(in_features))


def _round_into_super_blocks(same: Kept, target: Format) -> GroupParameters:
    """The nearest scales, then minima that make up for what a group's mean has lost by that."""
    block = block_of(target)
    levels = same.levels(0 if target.zero is _MINIMUM else target.fixed_zero_point)
    mean = levels.mean(axis=2) if target.zero is _MINIMUM else np.zeros_like(same.scale)
    parts = (len(levels), -1, block.width // levels.shape[2])
    # Every whole number of the largest part is tried, so that a grid's own products are found.
    tops = [*range(block.highest, 0, -1), *([block.lowest] if block.lowest else [])]
    cost = np.square(levels - mean[..., None]).sum(axis=2)
    ends = (block.lowest, block.highest)
    scales = share(same.scale.reshape(parts), cost.reshape(parts), ends, tops)
    groups_of_part = levels.shape[2] // target.group_size
    if target.zero is not _MINIMUM:
        return stored(target, _spread(scales, groups_of_part))
    lost = (same.scale - scales.product()) * mean
    taken_off = -(same.offset + lost).reshape(parts)
    minima = share(taken_off, np.ones_like(taken_off), (0, block.highest), tops)
    return stored(target, _spread(scales, groups_of_part), _spread(minima, groups_of_part))


def _spread(parts: Shared, groups_of_part: int) -> Shared:
    """The same for every group of a part."""
    return replace(parts, whole=np.repeat(parts.whole, groups_of_part, axis=1))


def _largest_change(before: Floats, after: Floats, block_weights: int) -> float:
    """Shapes: both (rows, in_features)."""
    blocks = (len(before), -1, block_weights)
    missed = np.abs(after - before).reshape(blocks).max(axis=2)
    largest = np.abs(before).reshape(blocks).max(axis=2)
    return float(np.max(missed / np.where(largest == 0, np.float32(1), largest), initial=0))


def _cannot_keep(format: Format, type_name: str) -> UsageError:
    return UsageError(
        f"{type_name} cannot keep the codes of {format.name}",
        do="Convert the weights instead of the codes",
    )
