"""GPTQ: choose codes column by column, each absorbing the errors of the columns before it.

In: a LayerProblem with H. Out: a LayerSolution. Falls back step by step and says so.
With H + damping = R R^T (R upper) and M = R / diag(R): the target of column j is
t_j = w_j + sum over k < j of e_k M[k, j], its code the nearest to t_j, e_j = w_j - decoded_j.
This is the published update (arXiv 2210.17323: w -= err U[j, :], U^T U = H^-1, R = U^-1) seen from
the column that receives, so H is never inverted; tests hold it to exact optimal-brain quantization.
Float columns come last: their error answers for all others' (solve/columns.py).
Refuses a missing H.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError
from crumb.formats.grid import GroupParameters
from crumb.kernels.threads import parallel_map
from crumb.solve.columns import with_float_columns
from crumb.solve.factored import Factored, factor, with_floats_last
from crumb.solve.problem import (
    LayerProblem,
    LayerSolution,
    Scales,
    SolveReport,
    join_parameters,
    join_reports,
)
from crumb.solve.refine import refined
from crumb.solve.round import solve_round
from crumb.solve.sweep import Layer, Pass

Floats = NDArray[np.float32]

SLAB_ROWS = 128
"""Rows that one thread solves at a time, the same on every machine."""


def solve_gptq(problem: LayerProblem) -> LayerSolution:
    """Codes by GPTQ.

    Raises: SolveError for weights that are not finite, or for a fallback in strict mode.
    """
    problem.check()
    hessian = problem.hessian
    assert hessian is not None, "GPTQ needs statistics"
    if not isinstance(hessian, Factored):
        factored = factor(hessian, problem.tokens, problem.settings)
        if factored is None:
            reason = f"rounded to nearest: {_why_hopeless(hessian)}"
            _refuse_if_strict(problem, reason)
            solution = solve_round(problem)
            return replace(solution, report=replace(solution.report, fallback=reason))
        hessian = factored
    if problem.columns is not None and not hessian.floats:
        with_floats = with_floats_last(hessian, problem.columns)
        assert with_floats is not None, "H has a factor in another order"
        hessian = with_floats
    if hessian.fallback:
        _refuse_if_strict(problem, hessian.fallback)
    return _swept(problem, hessian)


def _swept(problem: LayerProblem, factored: Factored) -> LayerSolution:
    """Rows do not depend on each other, so slabs of them share the processors."""
    _ = factored.unit, factored.importance  # made once, before threads ask for them
    if problem.settings.refinements:
        _ = factored.coupling

    def work(begin: int) -> LayerSolution:
        return _swept_rows(problem, factored, slice(begin, begin + SLAB_ROWS))

    slabs = parallel_map(work, range(0, len(problem.weights), SLAB_ROWS))
    return LayerSolution(
        np.concatenate([slab.codes for slab in slabs]),
        join_parameters([slab.parameters for slab in slabs], axis=0),
        join_reports([(slab.report, len(slab.codes)) for slab in slabs]),
        _joined_columns(slabs),
    )


def _joined_columns(slabs: list[LayerSolution]) -> NDArray[np.float16] | None:
    columns = [slab.columns for slab in slabs if slab.columns is not None]
    return np.concatenate(columns) if columns else None


def _swept_rows(problem: LayerProblem, factored: Factored, rows: slice) -> LayerSolution:
    settings, format = problem.settings, problem.format
    weights = problem.weights[rows]
    layer = Layer(weights, factored, format, settings)
    best = layer.sweep(_first_parameters(layer, weights))
    if settings.scales is Scales.SEARCH and settings.static_groups:
        best = _refitted(layer, best)
    best = refined(layer, best)
    columns = None
    if factored.floats:
        best, columns = with_float_columns(layer, best)
    codes = layer.in_matrix_order(best.codes)
    report = SolveReport(
        error=layer.true_error(best),
        energy=layer.energy(),
        zero_share=layer.zero_share(best),
        damping=factored.damping,
        fallback=factored.fallback,
        column_errors=layer.column_errors(best),
    )
    return LayerSolution(codes, best.parameters, report, columns)


def _first_parameters(layer: Layer, weights: Floats) -> GroupParameters | None:
    """Scales from the original weights, or None where each group is fitted on its way."""
    whole_row = layer.format.group_width(layer.in_features) >= layer.in_features
    if not (layer.settings.static_groups or whole_row):
        return None
    alive = np.where(layer.factored.dead, np.float32(0), weights)
    return layer.fit_groups(alive)


def _refitted(layer: Layer, best: Pass) -> Pass:
    """Fit the scales again to what the codes really had to approximate, and sweep again.

    The targets of a sweep are wider than the weights, for they carry the errors of the columns
    before. Each refit uses the running mean of the targets (the last ones alone oscillate), and
    every row keeps its best pass.
    """
    mean_targets = best.targets
    for _ in range(layer.settings.refits):
        targets = layer.in_matrix_order(mean_targets)
        last = layer.sweep(layer.fit_groups(targets))
        best = best.better(last)
        mean_targets = (mean_targets + last.targets) * np.float32(0.5)
    return best


def _why_hopeless(hessian: NDArray[np.float64]) -> str:
    if not hessian.diagonal().any():
        return "calibration never used this input"
    return "H is not positive definite at any damping"


def _refuse_if_strict(problem: LayerProblem, reason: str) -> None:
    if problem.settings.strict:
        raise SolveError(
            "a fallback was needed and --strict forbids it",
            where=problem.name,
            found=reason,
            do="Calibrate on more tokens, or raise --damping",
        )
