"""Super-blocks: whole numbers of groups, times one fp16 for the super-block.

In: the number wanted for each group and what it costs to miss it. Out: Shared, and from these the
GroupParameters that a format stores. Where the wanted numbers are such products, they are found.
Refuses numbers that fp16 cannot hold, when they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from crumb.formats.catalog import Format, SuperBlock
from crumb.formats.grid import Floats, GroupParameters, make_parameters

SMALLEST = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Shared:
    """Whole numbers of groups, and the fp16 number of their super-block that multiplies them."""

    unit: Floats  # (rows, blocks), an fp16 number's value
    whole: Floats  # (rows, groups)

    def product(self) -> Floats:
        """What each group gets, exactly, (rows, groups)."""
        per_block = self.whole.shape[1] // self.unit.shape[1]
        return np.repeat(self.unit, per_block, axis=1) * self.whole


def share(
    ideal: Floats,
    cost: Floats,
    ends: tuple[int, int],
    tops: Sequence[float],
    before: Shared | None = None,
) -> Shared:
    """fp16 and whole numbers whose products miss what is wanted by the least sum of cost squares.

    A start gives the group farthest from 0 one of `tops`; or it is the fp16 number found before.
    From each, the fp16 number is fitted to the whole numbers that it gives, then these again.
    Shapes: wanted, cost (rows, blocks, groups of a block).
    """
    ideal, cost = (np.ascontiguousarray(part.transpose(2, 0, 1)) for part in (ideal, cost))
    if before is None:
        peak = extreme(ideal, axis=0)
        starts = [peak / np.float32(top) for top in tops]
    else:
        starts = [before.unit]
    unit, least = starts[0], np.full(ideal.shape[1:], np.inf, np.float32)
    whole, costly = np.zeros_like(ideal), cost * ideal
    for start in starts:
        tried = _nearest(ideal, start, ends)
        fitted = divide((costly * tried).sum(0), (cost * tried * tried).sum(0), start)
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = fitted.astype(np.float16).astype(np.float32)
            tried = _nearest(ideal, fitted, ends)
            missed = (cost * np.square(ideal - fitted * tried)).sum(0)
        better = missed < least
        least, unit = np.where(better, missed, least), np.where(better, fitted, unit)
        np.copyto(whole, tried, where=better)
    return Shared(unit, whole.transpose(1, 2, 0).reshape(len(unit), -1))


def _nearest(ideal: Floats, unit: Floats, ends: tuple[int, int]) -> Floats:
    lowest, highest = map(np.float32, ends)
    with np.errstate(over="ignore"):
        whole = ideal * inverse(unit)
    return np.clip(np.rint(whole, out=whole), lowest, highest, out=whole)


def stored(format: Format, scales: Shared, minima: Shared | None = None) -> GroupParameters:
    """What the format stores. Raises: SolveError."""
    sub_scale = scales.whole.astype(np.int8)
    if minima is None:
        return replace(make_parameters(format, scales.unit, scales.unit), sub_scale=sub_scale)
    return replace(
        make_parameters(format, scales.unit, minima.unit),
        sub_scale=sub_scale,
        sub_minimum=minima.whole.astype(np.uint8),
    )


def block_of(format: Format) -> SuperBlock:
    """The super-block of a format that has one."""
    assert format.row.super_block is not None, "a format of super-blocks"
    return format.row.super_block


def groups_of_block(format: Format) -> int:
    """Groups of a whole super-block."""
    return block_of(format).width // format.group_size


def in_blocks(groups: Floats, format: Format) -> Floats:
    """Shapes: (rows, groups of whole super-blocks) -> (rows, blocks, groups of a block)."""
    return groups.reshape(len(groups), -1, groups_of_block(format))


def extreme(values: Floats, axis: int = -1) -> Floats:
    """The value farthest from 0 along an axis."""
    place = np.expand_dims(np.abs(values).argmax(axis), axis)
    return np.take_along_axis(values, place, axis).squeeze(axis)


def inverse(scale: Floats) -> Floats:
    """1 / scale, or 0 where that is beyond f32: such weights are nothing to fp16 either."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Floats = np.where(np.abs(scale) < SMALLEST, np.float32(0), 1 / scale)
    return inverse


def divide(above: Floats, below: Floats, otherwise: Floats) -> Floats:
    """above / below, or the third where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: Floats = np.where(below == 0, otherwise, above / below)
    return quotient
