"""Scales and offsets against what the extremes of the base's groups suggest.

In: a base's weights with the stored parameters, or with a piece that holds them. Out: the piece's
arrays, or the parameters. Each field is written as the difference of its bits, low bytes first.
The suggestion belongs to the file format and never changes: rounding with minmax scales meets it
exactly, every other solver comes near. A super-block's fields follow from those before them.
Refuses pieces that end early.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.delta.piece import PieceReader, PieceWriter
from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import GroupParameters
from crumb.formats.layouts.tile import HEADERS, SUB_HEADERS
from crumb.formats.super_blocks import groups_of_block

Floats = NDArray[np.float32]
Fields = dict[str, NDArray[Any]]

LARGEST_SUB_MINIMUM = 255


@dataclass(frozen=True)
class Suggested:
    """What a group's extremes suggest, each (rows, groups)."""

    scale: Floats
    zero_point: Floats
    minimum: Floats
    larger_side: Floats  # 1 or -1: the sign of the weight farthest from 0

    def turned(self) -> Suggested:
        """Scales whose code 0, the farthest from a fixed zero, is at the larger side."""
        return replace(self, scale=self.scale * -self.larger_side)


def put_parameters(
    piece: PieceWriter, parameters: GroupParameters, weights: Floats, format: Format
) -> None:
    """Write every field that the format stores."""
    suggested = suggest(weights, format)
    fields: Fields = {}
    turned = _is_turned(suggested, parameters.scale, format)
    piece.put(np.array([turned], np.uint8))
    suggested = suggested.turned() if turned else suggested
    for name in field_types(format):
        field = getattr(parameters, name)
        difference = _as_whole(field) - _as_whole(_expected(name, suggested, fields, format))
        fields[name] = field
        each_byte = np.ascontiguousarray(difference).view(np.uint8)
        piece.put(each_byte.reshape(-1, field.dtype.itemsize).T)


def take_parameters(piece: PieceReader, weights: Floats, format: Format) -> GroupParameters:
    """Undo put_parameters. Raises: CheckpointError."""
    suggested = suggest(weights, format)
    fields: Fields = {}
    suggested = suggested.turned() if piece.take(1)[0] else suggested
    for name, dtype in field_types(format).items():
        expected = _expected(name, suggested, fields, format)
        planes = piece.take(expected.nbytes).reshape(dtype.itemsize, -1)
        difference = np.ascontiguousarray(planes.T).view(_whole(dtype)).reshape(expected.shape)
        fields[name] = (_as_whole(expected) + difference).view(dtype)
    return GroupParameters(**fields)


def field_types(format: Format) -> dict[str, np.dtype[Any]]:
    """The fields of GroupParameters that a format stores, in the order of its tiles."""
    within = {} if format.row.super_block is None else SUB_HEADERS[format.zero]
    return HEADERS[format.zero] | within


def suggest(weights: Floats, format: Format) -> Suggested:
    """Scale and offset of each group, as its smallest and largest weight suggest them."""
    starts = np.arange(0, weights.shape[1], format.group_width(weights.shape[1]))
    with np.errstate(all="ignore"):
        low: Floats = np.nan_to_num(np.fmin.reduceat(weights, starts, axis=1))
        high: Floats = np.nan_to_num(np.fmax.reduceat(weights, starts, axis=1))
        largest = np.float32(format.row.largest_code)
        if format.zero is ZeroKind.VARIABLE or format.row.super_block is not None:
            low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        scale: Floats = (high - low) / largest
        if format.row.table is not None:
            largest_value = np.float32(np.abs(format.row.table).max())
            scale = (np.maximum(-low, high) / largest_value).astype(np.float32)
        elif format.zero is ZeroKind.FIXED:
            scale = (2 * np.maximum(-low, high) / largest).astype(np.float32)
        zero_point = np.where(scale == 0, np.float32(0), np.rint(-low / scale))
    larger_side = np.where(high > -low, np.float32(1), np.float32(-1))
    return Suggested(scale, np.clip(np.nan_to_num(zero_point), 0, largest), low, larger_side)


def _is_turned(suggested: Suggested, scale: NDArray[np.float16], format: Format) -> bool:
    """Whether a matrix's scales have the signs that `turned` gives, for the most part."""
    if format.zero is not ZeroKind.FIXED or scale.shape != suggested.scale.shape:
        return False
    agree = int(np.count_nonzero((scale < 0) == (suggested.larger_side > 0)))
    return agree > int(np.count_nonzero(scale >= 0))


def _expected(name: str, suggested: Suggested, fields: Fields, format: Format) -> NDArray[Any]:
    """What a field would be, given the suggestion and the fields before it."""
    block = format.row.super_block
    dtype = field_types(format)[name]
    if block is None:
        return _cast(getattr(suggested, name), dtype)
    width = groups_of_block(format)
    extreme, highest = {
        "scale": (suggested.scale, block.highest),
        "sub_scale": (suggested.scale, block.highest),
        "minimum": (-suggested.minimum, block.highest),
        "sub_minimum": (-suggested.minimum, min(block.highest, LARGEST_SUB_MINIMUM)),
    }[name]
    if not name.startswith("sub_"):
        begins = np.arange(0, extreme.shape[1], width)
        blocks: Floats = np.maximum.reduceat(extreme, begins, axis=1)
        return _cast(blocks / np.float32(highest), dtype)
    whole = np.repeat(fields[name.removeprefix("sub_")], width, axis=1).astype(np.float32)
    extreme = np.pad(extreme, ((0, 0), (0, whole.shape[1] - extreme.shape[1])))
    with np.errstate(all="ignore"):
        share = np.nan_to_num(np.rint(extreme / whole))
    return _cast(np.clip(share, 0, highest), dtype)


def _cast(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _whole(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned type of the same width: differences of bits wrap."""
    return np.dtype(f"<u{dtype.itemsize}")


def _as_whole(field: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(field).view(_whole(field.dtype))
