"""Round to nearest: every weight goes to the closest code of its group's grid.

In: a LayerProblem (H is used for the search of scales if it is there and not factored).
Out: a LayerSolution.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb.formats.float_columns import as_halves
from crumb.formats.grid import decode_reference, encode_reference
from crumb.solve.factored import Factored
from crumb.solve.problem import LayerProblem, LayerSolution, SolveReport
from crumb.solve.product import product
from crumb.solve.scales import fit_scales


def solve_round(problem: LayerProblem) -> LayerSolution:
    """Codes by plain rounding. Raises: SolveError, UsageError."""
    problem.check()
    weights, format = problem.weights, problem.format
    importance = np.ones(weights.shape[1], np.float32)
    hessian = None if isinstance(problem.hessian, Factored) else problem.hessian
    if hessian is not None:
        importance = hessian.diagonal().astype(np.float32)
    coded = weights
    if problem.columns is not None:
        coded = weights.copy()
        coded[:, problem.columns] = 0
    parameters = fit_scales(coded, importance, format, *problem.settings.grid)
    codes = encode_reference(coded, parameters, format)
    decoded, columns = decode_reference(codes, parameters, format), None
    if problem.columns is not None:
        columns = as_halves(weights[:, problem.columns] - decoded[:, problem.columns])
        decoded[:, problem.columns] += columns
    error = energy = of_columns = None
    if hessian is not None:
        error = weighted_square(weights - decoded, hessian)
        energy = weighted_square(weights, hessian)
        squares = np.square(weights - decoded, dtype=np.float64).sum(axis=0)
        of_columns = squares * hessian.diagonal()
    report = SolveReport(error, energy, zero_share(decoded), column_errors=of_columns)
    return LayerSolution(codes, parameters, report, columns)


def weighted_square(matrix: NDArray[np.float32], hessian: NDArray[np.float64]) -> float:
    """tr(M H M^T). Shapes: matrix (rows, columns), hessian (columns, columns)."""
    return float(np.einsum("ij,ij->", product(matrix, hessian), matrix, dtype=np.float64))


def zero_share(decoded: NDArray[np.float32]) -> float:
    """Share of decoded weights that are exactly 0."""
    return float(np.count_nonzero(decoded == 0) / max(decoded.size, 1))
