"""Learn the levels of a matrix's own table, before any code is chosen.

In: some rows of a matrix, the importance of each column, a Format of 4, 8 or 16 learned levels.
Out: the Format with the table: ascending whole numbers, the farthest of which is as far from 0 as
the row's; they are learned as numbers to 127 and then rounded.
In turn each group's scale is searched for the table, and each level becomes the mean of the
weights over their scales that are nearest to it, weighted by importance and squared scale.
Source: Lloyd's iteration, as weighted k-means in SqueezeLLM (arXiv 2306.07629), here on grids.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import Format
from crumb.formats.grid import group_of_column
from crumb.kernels.grid_search import grid_search
from crumb.solve.problem import LayerProblem, check_finite

Floats = NDArray[np.float32]

ROUNDS = 8
MOST_ROWS = 256
"""Rows that a table is learned from, spread over the matrix."""

FARTHEST = 127
"""Of a table's levels, as int8, while they are learned."""


def with_own_table(problem: LayerProblem) -> LayerProblem:
    """The problem with a table for its weights, if its format learns one.

    Float columns have no say. Raises: SolveError.
    """
    if not problem.format.row.learned:
        return problem
    check_finite(problem.weights, problem.name, problem.first_row)
    coded = problem.weights
    if problem.columns is not None:
        coded = coded.copy()
        coded[:, problem.columns] = 0
    return replace(problem, format=learn_table(coded, problem.importance(), problem.format))


def learn_table(weights: Floats, importance: Floats, format: Format) -> Format:
    """The format with a table for these weights. Shapes: (rows, columns), (columns,)."""
    step = -(-len(weights) // MOST_ROWS)
    sampled = np.ascontiguousarray(weights[::step])
    if not sampled.any():
        return format
    group = group_of_column(format, sampled.shape[1])
    fine = format.with_table(_whole(_table(format), FARTHEST))
    for _ in range(ROUNDS):
        scale, _ = grid_search(sampled, importance, fine)
        scale = scale[:, group]
        table = _means(sampled, scale, importance, _table(fine))
        learned = fine.with_table(_whole(table, FARTHEST))
        if learned == fine:
            break
        fine = learned
    return fine.with_table(_whole(_table(fine), format.row.farthest_level))


def _table(format: Format) -> NDArray[np.float64]:
    assert format.row.table is not None, f"{format.row.name} has levels"
    return np.array(format.row.table, np.float64)


def _means(
    weights: Floats, scale: Floats, importance: Floats, levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each level moved to the mean of what is nearest to it; one without weights stays."""
    used = scale != 0
    quotient = weights[used].astype(np.float64) / scale[used]
    weight = (np.square(scale, dtype=np.float64) * importance)[used]
    place = np.searchsorted((levels[:-1] + levels[1:]) / 2, quotient)
    total = np.bincount(place, weight, len(levels))
    pull = np.bincount(place, weight * quotient, len(levels))
    moved: NDArray[np.float64] = np.where(total > 0, pull / np.where(total > 0, total, 1), levels)
    return moved


def _whole(levels: NDArray[np.float64], farthest: int) -> tuple[int, ...]:
    """Whole numbers that ascend to one so far from 0; neighbours that meet move apart."""
    numbers = np.rint(levels * (farthest / float(np.abs(levels).max()))).astype(int).tolist()
    for place in range(1, len(numbers)):
        numbers[place] = max(numbers[place], numbers[place - 1] + 1)
    highest = farthest
    for place in reversed(range(len(numbers))):
        numbers[place] = min(numbers[place], highest)
        highest = numbers[place] - 1
    return tuple(numbers)
