"""A matrix in training: it begins as the solver left it, follows gradients, stays on its grid."""

from __future__ import annotations

import numpy as np
import pytest

from crumb.calibrate.trained_matrix import CODE_RATE, OUTSIDE, SCALE_RATE, TrainedMatrix
from crumb.formats.catalog import CATALOG, Format, ZeroKind, make_format
from crumb.formats.grid import decode_reference
from crumb.solve.problem import LayerProblem, LayerSolution, Method, SolveSettings
from crumb.solve.round import solve_round

FORMATS = [make_format(3, 32, zero) for zero in ZeroKind] + [CATALOG["q3_k"].only_format()]
FORMATS += [make_format(4, 64, "fixed", "fp4"), make_format(3, 64, "fixed", "lut")]


def solved(format: Format, seed: int = 0) -> LayerSolution:
    weights = np.random.default_rng(seed).normal(0, 0.05, (20, 256)).astype(np.float32)
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
        matrix.step(gradient, 1.0, step)
    after = TrainedMatrix.of(format, *matrix.solution()).weights()
    moved = matrix.codes() != solution.codes
    assert moved.mean() > 0.5
    assert (np.sign(before - after)[moved] == gradient[moved]).mean() > 0.99
    assert matrix.latent.min() >= -OUTSIDE
    assert matrix.latent.max() <= matrix.last + OUTSIDE


def test_the_first_step_has_the_length_of_the_rates() -> None:
    format = make_format(4, 64, ZeroKind.FIXED)
    solution = solved(format)
    matrix = TrainedMatrix.of(format, solution.codes, solution.parameters)
    latent, scale = matrix.latent.copy(), matrix.scale.copy()
    gradient = np.random.default_rng(1).uniform(0.5, 1.5, latent.shape).astype(np.float32)
    matrix.step(gradient, 0.5, 1)
    inside = (latent > 0) & (latent < format.row.largest_code)
    length = np.abs(matrix.latent - latent)[inside]
    # One unit of a latent code near 16 is 2e-6.
    assert length == pytest.approx(0.5 * CODE_RATE, abs=4e-6)
    assert np.abs(matrix.scale / scale - 1) == pytest.approx(0.5 * SCALE_RATE, abs=1e-6)


def test_scales_of_super_blocks_stay() -> None:
    format = CATALOG["q3_k"].only_format()
    solution = solved(format)
    matrix = TrainedMatrix.of(format, solution.codes, solution.parameters)
    matrix.step(np.ones_like(matrix.latent), 1.0, 1)
    assert (matrix.solution()[1].sub_scale == solution.parameters.sub_scale).all()
    assert (matrix.scale == solution.parameters.group_scale()).all()
