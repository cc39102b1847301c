"""Float columns: chosen where they pay, solved as the columns that answer for all others.

In: problems with correlated inputs, some columns of weights planted larger. Out: columns beside
those written down in f64, errors beside their traces, the planted columns and no others.
"""

from dataclasses import replace

import numpy as np
import pytest

from crumb.errors import UsageError
from crumb.formats.catalog import ROW, ZeroKind, make_format, parse_format
from crumb.kernels.decode import decode
from crumb.solve.columns import nats_of_bit, with_columns
from crumb.solve.factored import factor, with_floats_last
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import Method, Scales, SolveSettings, check_columns
from crumb.solve.round import solve_round
from crumb.solve.whole_matrix import packed, solve_matrix

INT3 = make_format(3, 32, ZeroKind.FIXED)
SETTINGS = SolveSettings(keep_columns=0.05)
FORMATS = ["int3-g32-fixed", "int3-g32-variable", "int2-row-minimum", "nf4-g64-fixed"]
FORMATS += ["lut3-g64-fixed", "q3_k-g16-fixed", "q4_k-g32-minimum"]


def planted(problem, columns, factor=30.0):
    weights = problem.weights.copy()
    weights[:, columns] *= np.float32(factor)
    return replace(problem, weights=weights)


def even(problem):
    """Normal weights, inputs alike: no column is worse than another."""
    weights = np.random.default_rng(0).standard_normal(problem.weights.shape).astype(np.float32)
    count = weights.shape[1]
    return replace(problem, weights=weights, hessian=np.eye(count) + 0.1)


def with_factor(problem):
    """H factored, as a quantization hands it on."""
    return replace(problem, hessian=factor(problem.hessian, problem.tokens, problem.settings))


def damped(problem):
    factored = factor(problem.hessian, problem.tokens, problem.settings)
    return problem.hessian + factored.added * np.eye(len(problem.hessian))


def chosen(problem, solve=solve_gptq):
    columns = with_columns(problem, problem.weights, solve).columns
    return [] if columns is None else columns.tolist()


@pytest.mark.parametrize("act_order", [True, False])
def test_the_factor_with_columns_last_is_that_of_the_same_h(act_order, make_problem):
    settings = replace(SETTINGS, act_order=act_order)
    problem = make_problem(1, 300, INT3, settings)
    columns = np.array([3, 150, 299])
    factored = with_floats_last(with_factor(problem).hessian, columns)
    np.testing.assert_array_equal(factored.order[-3:], columns)
    assert sorted(factored.order) == list(range(300))
    root = np.triu(factored.root)
    expected = damped(problem)[np.ix_(factored.order, factored.order)]
    np.testing.assert_allclose(root @ root.T, expected, rtol=0, atol=1e-12 * expected.max())
    lower = np.tril(factored.root, -1)  # refinement reads H there
    np.testing.assert_array_equal(lower, np.tril(expected, -1))


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, refits=0, refinements=0)])
def test_columns_hold_what_the_errors_of_all_others_ask_of_them(settings, make_problem):
    problem = make_problem(20, 96, INT3, settings, tokens_per_column=3)
    columns = np.array([0, 40, 41, 95])
    solution = solve_gptq(replace(problem, columns=columns))
    plain = replace(solution, columns=np.zeros_like(solution.columns))
    weights = decode(packed(replace(problem, columns=columns), plain)).astype(np.float64)
    assert (weights[:, columns] == 0).all()
    others = np.setdiff1d(np.arange(96), columns)
    errors = problem.weights[:, others] - weights[:, others]
    hessian = damped(problem)
    taken = errors @ hessian[np.ix_(others, columns)]
    asked = problem.weights[:, columns] + taken @ np.linalg.inv(hessian[np.ix_(columns, columns)])
    slip = 2.0**-11 * np.abs(asked) + 1e-5 * np.abs(errors).max() * 96
    assert (np.abs(solution.columns - asked) <= slip).all()
    assert np.abs(asked - problem.weights[:, columns]).max() > 10 * slip.max()  # they answer


@pytest.mark.parametrize("name", FORMATS)
def test_the_reported_error_is_that_of_codes_and_columns_together(name, make_problem):
    format = parse_format(name)
    problem = make_problem(37, 256, format, SETTINGS)
    columns = np.array([7, 100, 255])
    problem = replace(problem, columns=columns)
    for solve, report_slip in ((solve_gptq, 1e-3), (solve_round, 1e-3)):
        solution = solve(problem)
        error = problem.weights - decode(packed(problem, solution)).astype(np.float64)
        expected = np.einsum("ij,jk,ik->", error, problem.hessian, error, optimize=True)
        assert solution.report.error == pytest.approx(expected, rel=report_slip)
        if solve is solve_round:  # what rounding keeps of a column is the column
            slip = 2.0**-11 * np.abs(problem.weights).max() * 2
            assert np.abs(error[:, columns]).max() <= slip


def test_columns_lower_the_error_of_a_planted_matrix_many_times(make_problem):
    problem = planted(make_problem(64, 256, INT3, SETTINGS), [10, 77])
    alone = solve_gptq(with_factor(problem)).report.error
    prepared = with_columns(with_factor(problem), problem.weights, solve_gptq)
    assert solve_gptq(prepared).report.error < alone / 5


@pytest.mark.parametrize("solve", [solve_gptq, solve_round])
@pytest.mark.parametrize("group_size", [32, 128, ROW])
def test_planted_columns_are_found_though_several_lie_in_one_group(solve, group_size, make_problem):
    method = Method.GPTQ if solve is solve_gptq else Method.ROUND
    settings = replace(SETTINGS, method=method)
    problem = even(make_problem(64, 256, make_format(3, group_size, ZeroKind.FIXED), settings))
    if method is Method.GPTQ:
        problem = with_factor(problem)
    for columns in ([5], [5, 6], [5, 6, 20, 201]):
        assert chosen(planted(problem, columns), solve) == columns


def test_a_matrix_of_like_columns_keeps_none(make_problem):
    like = even(make_problem(64, 256, INT3, SETTINGS))
    assert chosen(with_factor(like)) == []
    rounded = replace(like, hessian=None, settings=replace(SETTINGS, method=Method.ROUND))
    assert chosen(rounded, solve_round) == []


def test_no_more_columns_are_kept_than_may_be_and_those_are_the_worst(make_problem):
    problem = even(make_problem(64, 256, INT3, replace(SETTINGS, keep_columns=0.01)))
    problem = planted(planted(problem, [3, 40, 90, 150, 200], 10.0), [90, 150, 200], 10.0)
    assert chosen(with_factor(problem)) == [90, 150, 200]


def test_dead_columns_are_never_kept(make_problem):
    problem = planted(even(make_problem(32, 128, INT3, SETTINGS)), [9, 50])
    hessian = problem.hessian.copy()
    hessian[9] = hessian[:, 9] = 0
    assert chosen(with_factor(replace(problem, hessian=hessian))) == [50]


def test_what_bytes_save_elsewhere_is_measured(make_problem):
    """Wider codes save about log 4 for a bit, finer groups what the weights' spread lets them."""
    problem = with_factor(even(make_problem(64, 256, INT3, SETTINGS)))
    nats = nats_of_bit(problem.weights, problem)
    assert 1.1 < nats < 1.7
    uneven = problem.weights * np.repeat([1, 0.25], 128).astype(np.float32)
    row = replace(problem, format=make_format(3, ROW, ZeroKind.FIXED))
    assert nats_of_bit(uneven, row) > 3 * nats


def test_a_whole_matrix_has_the_columns_of_its_first_rows(make_problem):
    drawn = even(make_problem(80, 96, INT3, SETTINGS))
    problem = with_factor(planted(drawn, [11]))
    whole = problem.weights
    slices = [(0, whole[:48]), (48, whole[48:])]
    tensor, report = solve_matrix(slices, replace(problem, weights=whole[:0]), solve_gptq)
    assert tensor.columns.places.tolist() == [11]
    assert tensor.columns.weights(80).shape == (80, 1)
    error = whole - decode(tensor).astype(np.float64)
    expected = np.einsum("ij,jk,ik->", error, drawn.hessian, error, optimize=True)
    assert report.error == pytest.approx(expected, rel=1e-3)


def test_groups_fitted_along_the_sweep_are_refused_beside_columns(make_problem):
    settings = replace(SETTINGS, static_groups=False, act_order=False, scales=Scales.MINMAX)
    with pytest.raises(UsageError, match="float columns need static_groups"):
        check_columns(settings, "x")
    with pytest.raises(UsageError, match="static_groups"):
        solve_gptq(make_problem(16, 64, INT3, settings))
