"""MXFP4 solved: whatever fits or moves a scale leaves it a power of two.

In: random layers. Out: scales on the powers, errors beside rounding's and the oracle's.
"""

from dataclasses import replace

import numpy as np
import pytest

from crumb.formats.catalog import CATALOG
from crumb.formats.grid import GroupParameters, decode_reference
from crumb.solve import refine
from crumb.solve.factored import factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import AS_PUBLISHED, Method, Scales, SolveSettings
from crumb.solve.round import solve_round
from crumb.solve.scales import fit_scales
from crumb.solve.sweep import Layer

FORMAT = CATALOG["mxfp4"].only_format()


def are_powers(scale):
    """Whether every scale is a power of two above 0."""
    fraction, _ = np.frexp(scale.astype(np.float64))
    return bool((fraction == 0.5).all())


@pytest.mark.parametrize("columns", [256, 200])
def test_gptq_leaves_less_output_error_than_rounding(columns, make_problem, direct):
    problem = make_problem(24, columns, FORMAT, SolveSettings())
    solved, rounded = solve_gptq(problem), solve_round(problem)
    exact = direct(problem, solved)
    assert abs(solved.report.error - exact.error) <= exact.error_bound
    assert solved.report.error < 0.6 * rounded.report.error
    assert are_powers(solved.parameters.scale)
    assert are_powers(rounded.parameters.scale)


def test_the_search_leaves_less_error_than_the_usual_powers(make_problem):
    problem = make_problem(24, 256, FORMAT, SolveSettings())
    usual = replace(problem, settings=SolveSettings(scales=Scales.MINMAX))
    assert solve_gptq(problem).report.error < 0.98 * solve_gptq(usual).report.error
    assert solve_round(problem).report.error < solve_round(usual).report.error


@pytest.mark.parametrize("method", Method)
def test_groups_fitted_on_their_way_have_powers_too(method, make_problem):
    problem = make_problem(24, 200, FORMAT, replace(AS_PUBLISHED, method=method))
    solved, rounded = solve_gptq(problem), solve_round(problem)
    assert are_powers(solved.parameters.scale)
    assert solved.report.error < 0.9 * rounded.report.error


def test_beside_float_columns_too(make_problem):
    problem = make_problem(24, 256, FORMAT, SolveSettings())
    beside = replace(problem, columns=np.array([3, 40, 200]))
    solved = solve_gptq(beside)
    assert are_powers(solved.parameters.scale)
    assert solved.report.error < solve_gptq(problem).report.error


def test_rows_are_fitted_alike_in_slabs(make_problem):
    problem = make_problem(300, 64, FORMAT, SolveSettings())
    ones = np.ones(64, np.float32)
    together = fit_scales(problem.weights, ones, FORMAT, Scales.SEARCH)
    for row in (0, 127, 128, 299):
        alone = fit_scales(problem.weights[row : row + 1], ones, FORMAT, Scales.SEARCH)
        np.testing.assert_array_equal(together.scale[row], alone.scale[0])


@pytest.mark.parametrize("factor_of_scale", [0.25, 0.5, 2, 4])
def test_refinement_moves_a_wrong_power_to_a_better_one(factor_of_scale, make_problem):
    """Weights that lie on the grid, and codes that are right: the scale alone is not."""
    settings = SolveSettings(refinements=1)
    problem = make_problem(8, 64, FORMAT, settings)
    solution = solve_round(problem)
    weights = decode_reference(solution.codes, solution.parameters, FORMAT)
    factored = factor(problem.hessian, problem.tokens, settings)
    layer = Layer(weights, factored, FORMAT, settings)
    wrong = GroupParameters((solution.parameters.scale * factor_of_scale).astype(np.float16))
    start = layer.sweep(wrong)
    ordered = solution.codes[:, factored.order]
    error = layer.weights - decode_reference(solution.codes, wrong, FORMAT)[:, factored.order]
    start = replace(start, codes=ordered, error=error, loss=layer.loss(error))
    moved = start.better(refine._with_scales(layer, start))
    end = moved.better(refine._with_scales(layer, moved))
    assert are_powers(end.parameters.scale)
    assert (end.loss < start.loss).all()
    assert end.loss.sum() < 0.2 * start.loss.sum()
    assert (end.parameters.scale == solution.parameters.scale).mean() > 0.8
