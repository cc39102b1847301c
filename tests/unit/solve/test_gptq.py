"""GPTQ around its sweep: damping, dead columns, fallbacks, refusals, reports, determinism."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from crumb.errors import SolveError, UsageError
from crumb.formats.catalog import ROW, ZeroKind, make_format
from crumb.formats.grid import decode_reference
from crumb.kernels import threads as threads_module
from crumb.solve.factored import factor
from crumb.solve.gptq import SLAB_ROWS, solve_gptq
from crumb.solve.problem import AS_PUBLISHED, Method, Scales, SolveSettings
from crumb.solve.round import solve_round

KINDS = pytest.mark.parametrize("zero", list(ZeroKind))
INT3 = make_format(3, 32, ZeroKind.VARIABLE)
BOTH = pytest.mark.parametrize(
    "settings", [SolveSettings(refinements=0), AS_PUBLISHED], ids=["ours", "paper"]
)

SOLVERS = {Method.ROUND: solve_round, Method.GPTQ: solve_gptq}


def decoded(solution, format):
    return decode_reference(solution.codes, solution.parameters, format)


def stored_bytes(solution):
    arrays = [solution.codes, *vars(solution.parameters).values()]
    return [None if array is None else array.tobytes() for array in arrays]


def with_eigenvalue(problem, share):
    """The problem with the smallest eigenvalue of H set to `share` of the mean diagonal."""
    values, vectors = np.linalg.eigh(problem.hessian)
    # Balanced H first: a negative eigenvalue must not make a diagonal entry negative.
    values[:] = values.mean()
    values[0] = share * values.mean()
    spread = np.linalg.qr(np.random.default_rng(0).standard_normal(vectors.shape))[0]
    spread[:, 0] = 1 / np.sqrt(len(values))
    spread = np.linalg.qr(spread)[0]
    matrix = (spread * values) @ spread.T
    return replace(problem, hessian=(matrix + matrix.T) / 2)


# ---- Damping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "share", "used"),
    [(0.01, -0.05, 0.1), (0.01, -0.5, 1.0), (0.0, -0.0005, 0.001), (0.05, -0.2, 0.5)],
)
def test_damping_rises_step_by_step_and_says_so(asked, share, used, make_problem):
    # Damping d lifts the eigenvalue `share` to share + d, so the first d above -share succeeds.
    problem = with_eigenvalue(
        make_problem(4, 64, INT3, SolveSettings(refinements=0, damping=asked)), share
    )
    report = solve_gptq(problem).report
    assert report.damping == pytest.approx(used, rel=1e-14, abs=0)  # repeated times 10
    assert report.fallback == f"damping raised from {asked:g} to {used:g}"


def test_h_without_hope_is_rounded_and_says_so(make_problem):
    problem = with_eigenvalue(
        make_problem(4, 64, INT3, SolveSettings(refinements=0, damping=0.01)), -5
    )
    assert (problem.hessian.diagonal() > 0).all()
    solution = solve_gptq(problem)
    assert stored_bytes(solution) == stored_bytes(solve_round(problem))
    assert solution.report.fallback == (
        "rounded to nearest: H is not positive definite at any damping"
    )
    assert solution.report.damping is None


def test_an_input_that_calibration_never_used_is_rounded_and_says_so(make_problem):
    problem = make_problem(4, 64, INT3, SolveSettings(refinements=0))
    problem = replace(problem, hessian=np.zeros((64, 64)))
    solution = solve_gptq(problem)
    assert stored_bytes(solution) == stored_bytes(solve_round(problem))
    assert solution.report.fallback == "rounded to nearest: calibration never used this input"
    assert solution.report.error == solution.report.energy == 0


@pytest.mark.parametrize(
    ("share", "reason"), [(-0.05, "damping raised from 0.01 to 0.1"), (-5, "at any damping")]
)
def test_strict_mode_refuses_every_fallback(share, reason, make_problem):
    settings = SolveSettings(refinements=0, damping=0.01, strict=True)
    problem = make_problem(4, 64, INT3, settings)
    assert solve_gptq(problem).report.fallback is None
    with pytest.raises(SolveError, match=rf"^layer\.weight: .*--strict.*{reason}"):
        solve_gptq(with_eigenvalue(problem, share))


@KINDS
@BOTH
def test_rows_solved_in_slabs_are_the_rows_solved_alone(settings, zero, make_problem):
    rows, last = 2 * SLAB_ROWS + 3, slice(2 * SLAB_ROWS, None)
    problem = make_problem(rows, 64, make_format(3, 32, zero), settings)
    solution = solve_gptq(problem)
    parts = [slice(0, SLAB_ROWS), slice(SLAB_ROWS, 2 * SLAB_ROWS), last]
    alone = [solve_gptq(replace(problem, weights=problem.weights[part])) for part in parts]
    for part, other in zip(parts, alone, strict=True):
        np.testing.assert_array_equal(solution.codes[part], other.codes)
        for name, array in vars(other.parameters).items():
            if array is not None:
                np.testing.assert_array_equal(getattr(solution.parameters, name)[part], array)
    # Sums of three numbers in f64.
    assert solution.report.error == pytest.approx(
        sum(each.report.error for each in alone), rel=1e-14
    )
    assert solution.report.energy == pytest.approx(
        sum(each.report.energy for each in alone), rel=1e-14
    )
    zeros = [each.report.zero_share * len(each.codes) for each in alone]
    assert solution.report.zero_share == pytest.approx(sum(zeros) / rows, rel=1e-14)


# ---- Dead columns --------------------------------------------------------------------------------

DEAD = [0, 5, 40, 63]


def with_dead_columns(problem, scale=1.0):
    """The problem with columns that calibration never used, whose weights are large."""
    hessian, weights = problem.hessian * scale, problem.weights.copy()
    hessian[DEAD], hessian[:, DEAD] = 0, 0
    weights[:, DEAD] = 100
    return replace(problem, hessian=hessian, weights=weights)


@BOTH
@pytest.mark.parametrize("zero", [ZeroKind.FIXED, ZeroKind.VARIABLE])
def test_the_weights_of_dead_columns_become_zero(settings, zero, make_problem):
    problem = with_dead_columns(make_problem(8, 64, make_format(3, 32, zero), settings))
    weights = decoded(solve_gptq(problem), problem.format)
    assert (weights[:, DEAD] == 0).all()
    # And they do not stretch the others' grid to 100.
    assert np.abs(weights).max() < 2 * np.abs(np.delete(problem.weights, DEAD, 1)).max()


@KINDS
@BOTH
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_the_report_ignores_dead_columns(settings, zero, scale, make_problem, direct):
    problem = make_problem(8, 64, make_format(3, 32, zero), settings)
    problem = with_dead_columns(problem, scale)
    solution = solve_gptq(problem)
    measured = direct(problem, solution)
    assert abs(solution.report.error - measured.error) <= measured.error_bound
    assert abs(solution.report.energy - measured.energy) <= measured.energy_bound


@KINDS
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_dead_columns_change_nothing_for_the_others(zero, scale, make_problem):
    # Zeros inside [min, max] leave min-max scales as they are, whatever the size of H.
    settings = SolveSettings(refinements=0, scales=Scales.MINMAX)
    problem = with_dead_columns(make_problem(8, 64, make_format(3, ROW, zero), settings), scale)
    alive = np.delete(np.arange(64), DEAD)
    small = replace(
        problem, weights=problem.weights[:, alive], hessian=problem.hessian[np.ix_(alive, alive)]
    )
    whole, part = solve_gptq(problem), solve_gptq(small)
    assert part.report.damping == whole.report.damping
    np.testing.assert_array_equal(whole.codes[:, alive], part.codes)
    np.testing.assert_array_equal(whole.parameters.scale, part.parameters.scale)


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_row_and_column(method, value, make_problem):
    problem = make_problem(8, 64, INT3, SolveSettings(refinements=0, method=method))
    problem.weights[3, 17] = value
    problem.weights[5, 2] = np.inf  # a later one, of which the message does not speak
    with pytest.raises(SolveError, match=rf"^layer\.weight\[3, 17\]: .*found {value}"):
        SOLVERS[method](problem)


@pytest.mark.parametrize("method", list(Method))
def test_a_group_wider_than_the_input_is_refused(method, make_problem):
    format = make_format(4, 128, ZeroKind.FIXED)
    problem = make_problem(4, 64, format, SolveSettings(refinements=0, method=method))
    with pytest.raises(UsageError, match=r"^layer\.weight: .*at most 64, found 128"):
        SOLVERS[method](problem)


def test_groups_on_the_way_need_the_stored_order(make_problem):
    # In act order they would hold columns that decode with another group's scale.
    settings = SolveSettings(refinements=0, act_order=True, static_groups=False)
    with pytest.raises(UsageError, match=r"^layer\.weight: act_order needs static_groups"):
        solve_gptq(make_problem(4, 64, INT3, settings))
    one_group = make_format(3, ROW, ZeroKind.FIXED)
    assert solve_gptq(make_problem(4, 64, one_group, settings)).report.error > 0
    rounding = replace(settings, method=Method.ROUND)
    assert solve_round(make_problem(4, 64, INT3, rounding)).report.error > 0


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("scales", list(Scales))
def test_weights_too_large_for_fp16_scales_are_refused(method, scales, make_problem):
    problem = make_problem(4, 64, INT3, SolveSettings(refinements=0, method=method, scales=scales))
    with pytest.raises(SolveError, match="fp16"):
        SOLVERS[method](replace(problem, weights=problem.weights * np.float32(1e20)))


# ---- Reports and quality -------------------------------------------------------------------------


@KINDS
@BOTH
@pytest.mark.parametrize("rows", [1, 40])
def test_error_and_energy_are_the_traces(settings, zero, rows, make_problem, direct):
    problem = make_problem(rows, 150, make_format(3, 64, zero), settings, tokens_per_column=2)
    solution = solve_gptq(problem)
    measured = direct(problem, solution)
    report = solution.report
    assert abs(report.error - measured.error) <= measured.error_bound
    assert abs(report.energy - measured.energy) <= measured.energy_bound
    assert report.relative_error == report.error / report.energy
    values = decoded(solution, problem.format)
    assert report.zero_share == np.mean(values == 0)
    squares = np.square(problem.weights - values, dtype=np.float64).sum(axis=0)
    expected = squares * problem.hessian.diagonal()
    np.testing.assert_allclose(report.column_errors, expected, rtol=1e-5, atol=1e-9)


@BOTH
def test_weights_of_zero_stay_zero(settings, make_problem):
    problem = make_problem(8, 64, INT3, settings)
    solution = solve_gptq(replace(problem, weights=np.zeros_like(problem.weights)))
    assert (decoded(solution, INT3) == 0).all()
    report = solution.report
    assert (report.error, report.energy, report.zero_share) == (0, 0, 1)
    assert report.relative_error == 0


@KINDS
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_beats_rounding_on_the_same_grid(zero, bits, act_order, make_problem, direct):
    format = make_format(bits, 32, zero)
    settings = SolveSettings(refinements=0, scales=Scales.MINMAX, act_order=act_order)
    ratios = []
    for seed in range(5):
        problem = make_problem(16, 96, format, settings, seed)
        swept, rounded = solve_gptq(problem), solve_round(problem)
        assert stored_bytes(swept)[1:] == stored_bytes(rounded)[1:], "the grids are the same"
        ratios.append(direct(problem, swept).error / direct(problem, rounded).error)
    # Inputs this correlated leave GPTQ between .3 and .7 of the error of rounding.
    assert np.mean(ratios) < 0.8
    assert max(ratios) < 1


def damped_row_errors(problem, solution):
    """What the sweep minimises: e (H + damping) e^T of each row, f64."""
    off = problem.weights.astype(np.float64) - decoded(solution, problem.format)
    added = solution.report.damping * problem.hessian.diagonal().mean()
    return np.einsum("ij,jk,ik->i", off, problem.hessian + added * np.eye(off.shape[1]), off)


@KINDS
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_refit_of_the_scales_makes_no_row_worse(zero, bits, make_problem):
    problem = make_problem(24, 96, make_format(bits, 32, zero), SolveSettings(refinements=0))
    once = replace(problem, settings=replace(problem.settings, refits=0))
    before = damped_row_errors(problem, solve_gptq(once))
    after = damped_row_errors(problem, solve_gptq(problem))
    # Passes are compared by f32 residuals: 101 roundings of sums whose parts exceed the residual
    # at most a hundredfold here, squared.
    assert (after <= before * (1 + 2 * 101 * 100 * 2.0**-24)).all()
    assert after.mean() < before.mean()


# ---- Determinism ---------------------------------------------------------------------------------


@BOTH
@KINDS
def test_the_same_inputs_give_the_same_bytes_on_any_threads(
    settings, zero, make_problem, monkeypatch
):
    problem = make_problem(150, 200, make_format(3, 32, zero), settings)
    before = problem.weights.tobytes(), problem.hessian.tobytes()
    results = []
    for threads in (1, 2, 1, 5):
        monkeypatch.setattr(threads_module, "processors", lambda threads=threads: threads)
        solution = solve_gptq(problem)
        results.append((stored_bytes(solution), solution.report))
    assert all(result == results[0] for result in results)
    assert (problem.weights.tobytes(), problem.hessian.tobytes()) == before


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_the_threads_of_blas_do_not_change_a_bit(solve, make_problem):
    # Wide enough that BLAS would cut its sums, and LAPACK its blocks, by the number of threads.
    problem = make_problem(24, 1100, INT3, AS_PUBLISHED, tokens_per_column=1)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            solution = solve(problem)
        results.append((stored_bytes(solution), solution.report))
    assert results[0] == results[1]


@BOTH
@KINDS
def test_rows_solved_apart_give_the_same_codes(settings, zero, make_problem):
    problem = make_problem(40, 200, make_format(3, 32, zero), settings)
    factored = factor(problem.hessian, problem.tokens, settings)
    problem = replace(problem, hessian=factored)
    whole = solve_gptq(problem)
    for rows in (1, 16, 17):
        parts = [
            solve_gptq(replace(problem, weights=problem.weights[begin : begin + rows]))
            for begin in range(0, 40, rows)
        ]
        np.testing.assert_array_equal(np.concatenate([part.codes for part in parts]), whole.codes)
        scales = np.concatenate([part.parameters.scale for part in parts])
        np.testing.assert_array_equal(scales, whole.parameters.scale)


def test_a_factor_may_be_shared_by_layers_and_solved_without_h(make_problem):
    problem = make_problem(8, 150, INT3, SolveSettings(refinements=0))
    factored = factor(problem.hessian, problem.tokens, problem.settings)
    alone = solve_gptq(problem)
    for _ in range(2):
        shared = solve_gptq(replace(problem, hessian=factored))
        assert stored_bytes(shared) == stored_bytes(alone)
        assert shared.report == alone.report
