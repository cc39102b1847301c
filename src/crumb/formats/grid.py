"""Encode and decode on a group's grid: the reference mathematics of every format.

In: weights (out_features, in_features) and each group's parameters. Out: codes, or weights again.
Arithmetic is f32 in the order written here; the native kernels give the same bits.
Refuses nothing: a scale of 0 means a group whose weights are all its zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError
from crumb.formats.catalog import CodeRow, Format, ZeroKind

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

ROUND_LIMIT = np.float32(1024.0)
"""Quotients are clipped to this before rounding: beyond any code, within exact rounding."""


@dataclass(frozen=True)
class GroupParameters:
    """What each group stores beside its codes: a scale, and what its zero and its block add.

    The arrays are one record, for most of what is done with them (rows taken, joined, laid into a
    header) is done to each alike. Where a row's last super-block is smaller, sub-scales are still
    those of a whole one, 0 where no group is. Raises: AssertionError for a pair that no format has.
    """

    scale: NDArray[np.float16]  # (out_features, blocks), may be negative
    zero_point: Codes | None = None  # (out_features, groups), variable zero only
    minimum: NDArray[np.float16] | None = None  # (out_features, blocks), float minimum only
    sub_scale: NDArray[np.int8] | None = None  # (out_features, whole_groups), super-blocks only
    sub_minimum: Codes | None = None  # (out_features, groups), super-blocks with a minimum only

    def __post_init__(self) -> None:
        assert self.zero_point is None or self.minimum is None, "a group has one zero"
        assert self.zero_point is None or self.sub_scale is None, "zero points have no super-block"
        has_both = (self.sub_scale is None, self.minimum is None) == (False, False)
        assert self.sub_minimum is None or has_both, "a sub-minimum lies beside both"

    def group_scale(self) -> Floats:
        """Each group's scale as f32, exactly, (out_features, groups)."""
        scale = self.scale.astype(np.float32)
        if self.sub_scale is None:
            return scale
        return _spread(scale, self.sub_scale) * self.sub_scale.astype(np.float32)

    def offset(self, format: Format) -> Floats:
        """Each group's zero point or minimum as f32, exactly, (out_features, groups)."""
        if format.zero is ZeroKind.FIXED:
            groups = self.scale if self.sub_scale is None else self.sub_scale
            return np.full(groups.shape, format.fixed_zero_point, np.float32)
        numbers = self.zero_point if format.zero is ZeroKind.VARIABLE else self.minimum
        assert numbers is not None, "make_parameters fills what the zero kind stores"
        offset: Floats = numbers.astype(np.float32)
        if self.sub_minimum is None:
            return offset
        return -(_spread(offset, self.sub_minimum) * self.sub_minimum.astype(np.float32))


def _spread(blocks: Floats, groups: NDArray[Any]) -> Floats:
    """What each group takes from its super-block. Shapes: (rows, blocks) -> (rows, groups)."""
    return np.repeat(blocks, groups.shape[1] // blocks.shape[1], axis=1)


def take_rows(parameters: GroupParameters, rows: slice) -> GroupParameters:
    """The parameters of some rows."""
    taken = {name: array[rows] for name, array in vars(parameters).items() if array is not None}
    return GroupParameters(**taken)


def choose_rows(
    first: NDArray[np.bool_], one: GroupParameters, other: GroupParameters
) -> GroupParameters:
    """The rows of `one` where first holds, else those of `other`; first is (out_features,)."""
    column = first[:, None]

    chosen = {
        name: np.where(column, array, getattr(other, name))
        for name, array in vars(one).items()
        if array is not None
    }
    return GroupParameters(**chosen)


def make_parameters(format: Format, scale: Floats, offset: Floats) -> GroupParameters:
    """Store a solver's f32 scale and offset at the precision of the format.

    Shapes: both (out_features, groups). Raises: SolveError where fp16 overflows or a value is NaN.
    """
    stored_offset = offset if format.zero is ZeroKind.MINIMUM else np.zeros_like(offset)
    largest = float(np.max(np.abs(np.stack([scale, stored_offset])), initial=0.0))
    if not largest <= float(np.finfo(np.float16).max):
        raise SolveError(
            "a scale or minimum does not fit fp16",
            expected="at most 65504",
            found=largest,
            do="Check the checkpoint's weights for overflow",
        )
    half = scale.astype(np.float16)
    if format.zero is ZeroKind.VARIABLE:
        return GroupParameters(half, zero_point=offset.astype(np.uint8))
    if format.zero is ZeroKind.MINIMUM:
        return GroupParameters(half, minimum=offset.astype(np.float16))
    return GroupParameters(half)


def group_of_column(format: Format, in_features: int) -> NDArray[np.int32]:
    """The group index of each input column, (in_features,)."""
    return (np.arange(in_features) // format.group_width(in_features)).astype(np.int32)


def levels_of(row: CodeRow) -> tuple[Floats, Codes]:
    """A table's levels in ascending order, each once, and the code of each; none without one."""
    levels, codes = np.unique(np.array(row.table or (), np.float32), return_index=True)
    return levels, codes.astype(np.uint8)


def nearest_in_table(weights: Floats, scale: Floats, row: CodeRow) -> Codes:
    """The code of the level nearest to each weight over its scale, of two the lower."""
    levels, code_of_level = levels_of(row)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.where(scale == 0, np.float32(0), weights / scale)
    place = np.zeros(quotient.shape, np.uint8)
    for half_way in (levels[:-1] + levels[1:]) * np.float32(0.5):
        place += quotient > half_way
    return code_of_level[place]


def encode_columns(
    weights: Floats, scale: Floats, offset: Floats, largest_code: int, zero: ZeroKind
) -> Codes:
    """Round to the nearest whole number. All arrays broadcast to the shape of weights."""
    base, shift = (offset, np.float32(0)) if zero is ZeroKind.MINIMUM else (np.float32(0), offset)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.where(scale == 0, np.float32(0), (weights - base) / scale)
    rounded = np.rint(np.clip(quotient, -ROUND_LIMIT, ROUND_LIMIT)) + shift
    codes: Codes = np.clip(rounded, 0, largest_code).astype(np.uint8)
    return codes


def decode_columns(
    codes: NDArray[np.integer[Any]], scale: Floats, offset: Floats, zero: ZeroKind
) -> Floats:
    """The value of each code, or of the level a table gives it. All broadcast to their shape."""
    levels = codes.astype(np.float32)
    if zero is ZeroKind.MINIMUM:
        return levels * scale + offset
    return (levels - offset) * scale


def encode_reference(weights: Floats, parameters: GroupParameters, format: Format) -> Codes:
    """Codes of a whole tensor. Shapes: (out_features, in_features) to the same."""
    group = group_of_column(format, weights.shape[1])
    scale = parameters.group_scale()[:, group]
    if format.row.table is not None:
        return nearest_in_table(weights, scale, format.row)
    offset = parameters.offset(format)[:, group]
    return encode_columns(weights, scale, offset, format.row.largest_code, format.zero)


def decode_reference(codes: Codes, parameters: GroupParameters, format: Format) -> Floats:
    """Weights of a whole tensor. Shapes: (out_features, in_features) to the same."""
    group = group_of_column(format, codes.shape[1])
    scale = parameters.group_scale()[:, group]
    levels = codes if format.row.table is None else np.array(format.row.table, np.int8)[codes]
    return decode_columns(levels, scale, parameters.offset(format)[:, group], format.zero)
