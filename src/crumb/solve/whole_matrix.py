"""A whole matrix into codes, some rows at a time: rows do not depend on each other.

In: slices of the weights, a problem that says all but these, a solver. Out: the PackedTensor and
the SolveReport of all rows. A learned table is that of the first slice. Refuses what the solver
refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crumb.formats.packed_tensor import PackedTensor, stack_rows
from crumb.kernels.tile import pack_tensor
from crumb.solve.problem import (
    LayerProblem,
    LayerSolution,
    SolveReport,
    check_finite,
    join_reports,
)
from crumb.solve.tables import learn_table

Slices = Iterable[tuple[int, NDArray[np.float32]]]
"""(first row, weights) of some rows, whole tiles of them, in order."""


def solve_matrix(
    slices: Slices, problem: LayerProblem, solve: Callable[[LayerProblem], LayerSolution]
) -> tuple[PackedTensor, SolveReport]:
    """Codes of all rows; `problem` has all but the weights. Raises: what `solve` raises."""
    parts, reports = [], []
    for begin, weights in slices:
        if begin == 0 and problem.format.row.learned:
            check_finite(weights, problem.name)
            format = learn_table(weights, problem.importance(), problem.format)
            problem = replace(problem, format=format)
        solution = solve(replace(problem, weights=weights, first_row=begin))
        parts.append(pack_tensor(solution.codes, solution.parameters, problem.format))
        reports.append((solution.report, len(solution.codes)))
    return stack_rows(parts), join_reports(reports)
