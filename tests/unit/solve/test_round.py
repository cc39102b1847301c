"""Plain rounding: nearest codes, and an error in units of H where there is an H."""

from dataclasses import replace

import numpy as np
import pytest

from crumb.formats.catalog import ZeroKind, make_format
from crumb.formats.grid import decode_reference, encode_reference
from crumb.solve.problem import Method, Scales, SolveSettings
from crumb.solve.round import solve_round

KINDS = pytest.mark.parametrize("zero", list(ZeroKind))
ROUND = SolveSettings(method=Method.ROUND)


@KINDS
@pytest.mark.parametrize("scales", list(Scales))
def test_codes_are_the_nearest_on_the_stored_grid(zero, scales, make_problem):
    format = make_format(3, 32, zero)
    problem = make_problem(8, 75, format, replace(ROUND, scales=scales))
    solution = solve_round(problem)
    nearest = encode_reference(problem.weights, solution.parameters, format)
    np.testing.assert_array_equal(solution.codes, nearest)


@KINDS
def test_error_and_energy_are_the_traces(zero, make_problem, direct):
    problem = make_problem(20, 150, make_format(3, 64, zero), ROUND)
    solution = solve_round(problem)
    measured = direct(problem, solution)
    assert abs(solution.report.error - measured.error) <= measured.error_bound
    assert abs(solution.report.energy - measured.energy) <= measured.energy_bound
    values = decode_reference(solution.codes, solution.parameters, problem.format)
    assert solution.report.zero_share == np.mean(values == 0)
    squares = np.square(problem.weights - values, dtype=np.float64).sum(axis=0)
    expected = squares * problem.hessian.diagonal()
    np.testing.assert_allclose(solution.report.column_errors, expected, rtol=1e-12)


def test_without_h_nothing_is_said_of_the_error(make_problem):
    problem = make_problem(8, 64, make_format(4, 32, ZeroKind.FIXED), ROUND)
    report = solve_round(replace(problem, hessian=None)).report
    assert (report.error, report.energy, report.relative_error) == (None, None, None)
    assert (report.damping, report.fallback) == (None, None)


@KINDS
def test_the_diagonal_of_h_lowers_the_error_under_h(zero, make_problem):
    # Columns of H differ by three powers of ten, so scales that do not see it lose some percent.
    problem = make_problem(32, 128, make_format(2, 32, zero), ROUND)
    diagonal = 10.0 ** np.random.default_rng(0).uniform(-3, 0, 128)
    problem = replace(problem, hessian=np.diag(diagonal))
    seen, blind = solve_round(problem), solve_round(replace(problem, hessian=None))
    values = decode_reference(blind.codes, blind.parameters, problem.format)
    assert seen.report.error < 0.95 * np.sum((problem.weights - values) ** 2 * diagonal)
