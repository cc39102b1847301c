"""Zero points from 1 on: only groups that had 0 change, and those get the best scale that is left.

In: layers whose groups are partly all positive. Out: zero points, and errors against plain scales.
"""

import numpy as np
import pytest

from crumb.formats.catalog import ROW, ZeroKind, make_format
from crumb.formats.grid import decode_reference, encode_reference
from crumb.kernels.grid_search import SHRINKS
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import Scales, SolveSettings
from crumb.solve.scales import fit_scales
from crumb.solve.zero_points import raise_zero_points

BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])
UNIT = 2.0**-24


def layer(rows=32, columns=150, seed=0):
    """Half of the groups of 32 have no weight below 0; the last group is a ragged one."""
    rng = np.random.default_rng([seed, rows])
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    weights[::2, 32:64] = np.abs(weights[::2, 32:64]) + 0.1
    weights[1::2, 128:] = np.abs(weights[1::2, 128:])
    return weights, (10.0 ** rng.uniform(-1, 1, columns)).astype(np.float32)


@BITS
@pytest.mark.parametrize("scales", list(Scales))
@pytest.mark.parametrize("group_size", [32, ROW])
def test_no_zero_point_lies_below_the_lowest(bits, scales, group_size):
    weights, importance = layer()
    format = make_format(bits, group_size, ZeroKind.VARIABLE)
    free = fit_scales(np.abs(weights), importance, format, scales)
    assert (free.zero_point == 0).any()
    kept = fit_scales(np.abs(weights), importance, format, scales, lowest_zero_point=1)
    assert (kept.zero_point == np.maximum(free.zero_point, 1)).all()
    assert kept.zero_point.max() < 1 << bits


@BITS
def test_other_groups_stay_as_they_are(bits):
    weights, importance = layer()
    format = make_format(bits, 32, ZeroKind.VARIABLE)
    free = fit_scales(weights, importance, format, Scales.SEARCH)
    kept = fit_scales(weights, importance, format, Scales.SEARCH, lowest_zero_point=1)
    others = free.zero_point > 0
    assert 0 < others.sum() < others.size
    np.testing.assert_array_equal(kept.scale[others], free.scale[others])


@pytest.mark.parametrize("zero", [ZeroKind.FIXED, ZeroKind.MINIMUM])
def test_other_kinds_of_zero_have_no_such_bound(zero):
    weights, importance = layer()
    format = make_format(3, 32, zero)
    free = fit_scales(weights, importance, format, Scales.SEARCH)
    kept = fit_scales(weights, importance, format, Scales.SEARCH, lowest_zero_point=1)
    np.testing.assert_array_equal(kept.scale, free.scale)


@BITS
def test_a_raised_group_has_no_more_error_than_any_scale_tried(bits):
    weights, importance = layer(columns=96)
    weights = np.abs(weights)
    format = make_format(bits, ROW, ZeroKind.VARIABLE)
    nothing = np.zeros((32, 1), np.float32)
    scale, point = raise_zero_points(weights, importance, format, (nothing, nothing), 1)
    assert (point == 1).all()

    def error(tried):
        codes = np.clip(np.rint(weights / tried) + 1, 0, format.row.largest_code)
        return np.sum(importance * (weights - (codes - 1) * tried.astype(np.float64)) ** 2, axis=1)

    # Sums of 96 squares are compared after at most 100 f32 roundings each.
    roundings = 200 * UNIT * np.sum(importance * weights.astype(np.float64) ** 2, axis=1)
    for shrink in SHRINKS:
        plain = shrink * weights.max(1, keepdims=True) / np.float32(format.row.largest_code - 1)
        assert (error(scale) <= error(plain) + roundings).all()


@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_groups_of_nothing_are_raised_without_a_warning(value):
    format = make_format(3, 32, ZeroKind.VARIABLE)
    weights = np.full((4, 64), value, np.float32)
    ones = np.ones(64, np.float32)
    kept = fit_scales(weights, ones, format, Scales.SEARCH, lowest_zero_point=1)
    assert (kept.zero_point == 1).all()
    assert (decode_reference(encode_reference(weights, kept, format), kept, format) == 0).all()


def test_refits_keep_the_bound(make_problem):
    """The targets of a sweep may again ask for a zero point of 0."""
    format = make_format(2, 32, ZeroKind.VARIABLE)
    settings = SolveSettings(lowest_zero_point=1)
    problem = make_problem(24, 96, format, settings)
    problem.weights[:, :64] = np.abs(problem.weights[:, :64]) + 0.02
    solved = solve_gptq(problem)
    assert solved.parameters.zero_point.min() == 1
