"""A matrix in training: it begins as the solver left it, follows gradients, stays on its grid."""

from __future__ import annotations

import numpy as np
import pytest

from crumb.calibrate.trained_matrix import NEAREST, OUTSIDE, Rates, TrainedMatrix
from crumb.formats.catalog import CATALOG, Format, ZeroKind, make_format
from crumb.formats.grid import decode_reference
from crumb.solve.problem import LayerProblem, LayerSolution, Method, SolveSettings
from crumb.solve.round import solve_round

FORMATS = [make_format(3, 32, zero) for zero in ZeroKind] + [CATALOG["q3_k"].only_format()]
FORMATS += [make_format(4, 64, "fixed", "fp4"), make_format(3, 64, "fixed", "lut")]
FORMATS += [CATALOG["mxfp4"].only_format()]
RATES = Rates(code=0.02, scale=7e-4)


def solved(format: Format, columns: int = 256) -> LayerSolution:
    weights = np.random.default_rng(0).normal(0, 0.05, (20, columns)).astype(np.float32)
    settings = SolveSettings(method=Method.ROUND)
    return solve_round(LayerProblem("w", weights, None, 0, format, settings))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_it_begins_and_ends_as_what_the_solver_found(format: Format) -> None:
    solution = solved(format)
    matrix = TrainedMatrix.of(format, solution.codes, solution.parameters)
    expected = decode_reference(solution.codes, solution.parameters, format)
    assert (matrix.weights() == expected).all()
    codes, parameters = matrix.solution()
    assert (codes == solution.codes).all()
    assert (decode_reference(codes, parameters, format) == expected).all()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_weights_go_against_their_gradient_whatever_the_sign_of_the_scale(format: Format) -> None:
    solution = solved(format)
    matrix = TrainedMatrix.of(format, solution.codes, solution.parameters)
    before = matrix.weights()
    gradient = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), before.shape)
    for step in range(1, 40):
        matrix.step(gradient.copy(), 1.0, step, RATES)
    after = TrainedMatrix.of(format, *matrix.solution()).weights()
    moved = matrix.codes() != solution.codes
    assert moved.mean() > 0.5
    assert (np.sign(before - after)[moved] == gradient[moved]).mean() > 0.99
    assert matrix.latent.min() >= -OUTSIDE
    assert matrix.latent.max() <= matrix.last + OUTSIDE


def test_the_first_step_has_the_length_of_the_rates_for_an_entry_of_usual_size() -> None:
    format = make_format(4, 64, ZeroKind.FIXED)
    solution = solved(format)
    matrix = TrainedMatrix.of(format, solution.codes, solution.parameters)
    latent, scale = matrix.latent.copy(), matrix.scale.copy()
    gradient = np.random.default_rng(1).uniform(0.5, 1.5, latent.shape).astype(np.float32)
    matrix.step(gradient, 0.5, 1, RATES)
    moved = matrix.latent - latent
    inside = (latent > 0) & (latent < format.row.largest_code)
    assert np.sqrt((moved[inside] ** 2).mean()) == pytest.approx(0.5 * RATES.code, rel=0.02)
    # What has the larger gradient moves further.
    assert (moved / gradient)[inside] == pytest.approx((moved / gradient)[inside][0], rel=1e-2)
    shares = matrix.scale / scale - 1
    assert np.sqrt((shares**2).mean()) == pytest.approx(0.5 * RATES.scale, rel=0.02)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_latent_codes_begin_on_the_side_of_the_float_weights(format: Format) -> None:
    solution = solved(format)
    codes = solution.codes
    weights = decode_reference(codes, solution.parameters, format)
    scale = np.repeat(solution.parameters.group_scale(), format.group_size, axis=1)
    for share in (-0.3, 0.0, 0.3, 5.0):
        matrix = TrainedMatrix.of(
            format, codes, solution.parameters, floats=weights + share * scale
        )
        assert (matrix.codes() == codes).all()
        ahead = matrix.latent - matrix.places()
        assert (np.abs(ahead) <= NEAREST + 1e-6).all()
        if share == 5.0 and format.row.table is None:
            assert ahead[scale != 0] == pytest.approx(NEAREST, abs=1e-5)


@pytest.mark.parametrize(("codes", "columns"), [("q3_k", 256), ("super2", 256), ("super2", 320)])
def test_super_blocks_move_by_their_fp16_scale_and_keep_their_sub_scales(
    codes: str, columns: int
) -> None:
    format = CATALOG[codes].only_format()
    solution = solved(format, columns)
    matrix = TrainedMatrix.of(format, solution.codes, solution.parameters)
    before = matrix.weights()
    shrink = before.copy()
    matrix.step(shrink, 1.0, 1, Rates(code=0.0, scale=0.01))
    parameters = matrix.solution()[1]
    assert (parameters.sub_scale == solution.parameters.sub_scale).all()
    assert parameters.scale.shape == solution.parameters.scale.shape
    after = matrix.weights(as_halves=True)
    assert (after == decode_reference(solution.codes, parameters, format)).all()
    assert 0.98 < np.linalg.norm(after) / np.linalg.norm(before) < 0.995


def test_scales_that_are_powers_of_two_stay_as_they_are() -> None:
    format = CATALOG["mxfp4"].only_format()
    solution = solved(format)
    matrix = TrainedMatrix.of(format, solution.codes, solution.parameters)
    matrix.step(matrix.weights(), 1.0, 1, Rates(code=0.5, scale=0.2))
    codes, parameters = matrix.solution()
    assert (codes != solution.codes).any()
    assert (parameters.scale == solution.parameters.scale).all()
