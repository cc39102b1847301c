"""A whole matrix into codes, some rows at a time: rows do not depend on each other.

In: slices of the weights, a problem that says all but these, a solver. Out: the PackedTensor and
the SolveReport of all rows. Float columns and a learned table are those of the first slice.
Refuses what the solver refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crumb.formats.float_columns import float_columns
from crumb.formats.packed_tensor import PackedTensor, stack_rows
from crumb.kernels.tile import pack_tensor
from crumb.solve.columns import with_columns
from crumb.solve.problem import (
    LayerProblem,
    LayerSolution,
    SolveReport,
    join_reports,
)
from crumb.solve.tables import with_own_table

Slices = Iterable[tuple[int, NDArray[np.float32]]]
"""(first row, weights) of some rows, whole tiles of them, in order."""

Solve = Callable[[LayerProblem], LayerSolution]


def solve_matrix(
    slices: Slices, problem: LayerProblem, solve: Solve
) -> tuple[PackedTensor, SolveReport]:
    """Codes of all rows; `problem` has all but the weights. Raises: what `solve` raises."""
    parts, reports = [], []
    for begin, weights in slices:
        if begin == 0:
            problem = _prepared(problem, weights, solve)
        solution = solve(replace(problem, weights=weights, first_row=begin))
        parts.append(packed(problem, solution))
        reports.append((solution.report, len(solution.codes)))
    return stack_rows(parts), join_reports(reports)


def _prepared(problem: LayerProblem, weights: NDArray[np.float32], solve: Solve) -> LayerProblem:
    """What is decided for the whole matrix by its first rows: float columns, then a table."""
    if problem.settings.keep_columns:
        problem = with_columns(problem, weights, solve)
    own = with_own_table(replace(problem, weights=weights))
    return replace(problem, format=own.format)


def packed(problem: LayerProblem, solution: LayerSolution) -> PackedTensor:
    """A solution as it is stored."""
    tensor = pack_tensor(solution.codes, solution.parameters, problem.format)
    if problem.columns is None or solution.columns is None:
        return tensor
    return replace(tensor, columns=float_columns(problem.columns, solution.columns))
