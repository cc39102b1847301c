"""The column sweep of GPTQ inside one block of columns: native, with its reference.

In: the block's weights, the correction from earlier columns, the unit upper factor, the grid.
Out: codes and the error each column leaves (weights minus chosen value).
Indices here are all column_in_block; solve/gptq.py keeps the column_in_matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.formats.catalog import Format
from crumb.formats.grid import decode_columns, encode_columns, levels_of, nearest_in_table
from crumb.kernels.dispatch import selected_set, zero_code
from crumb.kernels.threads import over_rows

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SweepGrid:
    """The grid of each column in the block."""

    format: Format
    scale: Floats  # (rows, groups)
    offset: Floats  # (rows, groups) zero point or minimum
    group: NDArray[np.int32]  # (columns,) group of each column_in_block


def sweep(
    start: Floats, weights: Floats, factor: Floats, grid: SweepGrid, rounding: bool = True
) -> tuple[NDArray[np.uint8], Floats]:
    """Codes and error of one block; without rounding each column takes its target as it is.

    Shapes: start, weights (rows, columns); factor (columns, columns), unit upper triangle ->
    codes, error (rows, columns).
    """
    rows, columns = weights.shape
    codes = np.zeros((rows if rounding else 0, columns), np.uint8)
    error = np.empty((rows, columns), np.float32)
    factor = np.ascontiguousarray(factor, np.float32)
    levels, code_of_level = levels_of(grid.format.row)
    isa = selected_set()

    def work(part: slice) -> None:
        _native.sweep(
            isa,
            np.ascontiguousarray(start[part]),
            np.ascontiguousarray(weights[part]),
            factor,
            np.ascontiguousarray(grid.scale[part]),
            np.ascontiguousarray(grid.offset[part]),
            grid.group,
            codes[part],
            error[part],
            grid.format.row.largest_code,
            zero_code(grid.format),
            rounding,
            levels,
        )

    over_rows(rows, work)
    return codes if not levels.size else code_of_level[codes], error


def sweep_reference(
    start: Floats, weights: Floats, factor: Floats, grid: SweepGrid, rounding: bool = True
) -> tuple[NDArray[np.uint8], Floats]:
    """What sweep computes, column by column in plain NumPy."""
    target = start.copy()
    codes = np.zeros(weights.shape if rounding else (0, weights.shape[1]), np.uint8)
    error = np.empty_like(weights)
    zero = grid.format.zero
    for column_in_block in range(weights.shape[1]):
        chosen = target[:, column_in_block]
        if rounding:
            group = grid.group[column_in_block]
            scale, offset = grid.scale[:, group], grid.offset[:, group]
            if grid.format.row.table is None:
                code = encode_columns(chosen, scale, offset, grid.format.row.largest_code, zero)
                chosen = decode_columns(code, scale, offset, zero)
            else:
                code = nearest_in_table(chosen, scale, grid.format.row)
                chosen = np.array(grid.format.row.table, np.float32)[code] * scale
            codes[:, column_in_block] = code
        error[:, column_in_block] = weights[:, column_in_block] - chosen
        later = slice(column_in_block + 1, None)
        target[:, later] += error[:, column_in_block, None] * factor[column_in_block, later]
    return codes, error
