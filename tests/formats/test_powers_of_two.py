"""Scales that are powers of two: the best of all powers, and those of the standard.

In: random weights, and some at the ends of what is held. Out: powers, compared with every power
that there is, by errors in f64.
"""

import numpy as np
import pytest

from crumb.errors import SolveError
from crumb.formats.catalog import CATALOG, ROW, Format, ZeroKind
from crumb.formats.grid import GroupParameters, decode_reference, encode_reference
from crumb.formats.powers_of_two import (
    HALF_EXPONENTS,
    USUAL,
    nearest_power,
    power_scales,
)

FORMAT = CATALOG["mxfp4"].only_format()
EVERY_POWER = np.exp2(np.arange(HALF_EXPONENTS[0], HALF_EXPONENTS[1] + 1)).astype(np.float16)
LARGEST = 12 * 2.0**15


def layer(rows=24, columns=160, seed=0):
    rng = np.random.default_rng([seed, rows, columns])
    weights = rng.normal(0, 0.05, (rows, columns)) * np.exp2(rng.integers(-3, 4, (rows, 1)))
    return weights.astype(np.float32), (10.0 ** rng.uniform(-1, 1, columns)).astype(np.float32)


def errors(weights, importance, scale, format=FORMAT):
    """Sum of h (w - decoded)^2 of each group in f64, (rows, groups)."""
    parameters = GroupParameters(scale.astype(np.float16))
    codes = encode_reference(weights, parameters, format)
    missed = weights.astype(np.float64) - decode_reference(codes, parameters, format)
    starts = np.arange(0, weights.shape[1], format.group_width(weights.shape[1]))
    return np.add.reduceat(importance * np.square(missed), starts, axis=1)


@pytest.mark.parametrize("columns", [160, 75, 32])
@pytest.mark.parametrize("group_size", [32, ROW])
def test_no_power_leaves_less_error_than_the_one_that_is_chosen(columns, group_size):
    format = Format(FORMAT.row, group_size, ZeroKind.FIXED)
    weights, importance = layer(columns=columns)
    scale = power_scales(weights, importance, format)
    every = [np.full(scale.shape, power) for power in EVERY_POWER]
    least = np.min([errors(weights, importance, power, format) for power in every], axis=0)
    chosen = errors(weights, importance, scale, format)
    assert (chosen <= least * (1 + 1e-5)).all()  # errors are compared in f32
    usual = errors(weights, importance, power_scales(weights, importance, format, USUAL), format)
    assert (usual > chosen).mean() > 0.05


def test_the_usual_power_gives_largest_weight_and_farthest_level_one_exponent():
    """4-bit floats reach 6, or 1.5 * 2^2; the scale is half of MXFP4's, for levels are doubled."""
    weights = np.zeros((5, 32), np.float32)
    weights[:, 3] = [4.0, 6.0, 7.99, -8.0, 0.75]
    scale = power_scales(weights, np.ones(32, np.float32), FORMAT, USUAL)
    np.testing.assert_array_equal(scale[:, 0], np.array([1, 1, 1, 2, 0.125]) / 2)


def test_a_group_that_is_0_decodes_to_0():
    scale = power_scales(np.zeros((2, 64), np.float32), np.ones(64, np.float32), FORMAT)
    assert np.isin(scale, EVERY_POWER).all()


@pytest.mark.parametrize("size", [1e-45, 1e-12, 2.0**-26])
def test_weights_below_the_smallest_power_become_zeros_or_the_smallest_level(size):
    weights = np.full((1, 32), size, np.float32)
    scale = power_scales(weights, np.ones(32, np.float32), FORMAT)
    np.testing.assert_array_equal(scale, [[2.0 ** HALF_EXPONENTS[0]]])


def test_weights_beyond_the_largest_power_are_refused():
    weights = np.full((1, 32), LARGEST, np.float32)
    ones = np.ones(32, np.float32)
    np.testing.assert_array_equal(power_scales(weights, ones, FORMAT), [[2.0**15]])
    clipped = np.float32(4 / 3) * weights  # 2^19
    power_scales(np.nextafter(clipped, np.float32(0)), ones, FORMAT)
    with pytest.raises(SolveError, match=r"beyond the reach of mxfp4.*less than 524288.*524288"):
        power_scales(clipped, ones, FORMAT)


def test_the_nearest_power_is_the_nearest_of_all():
    rng = np.random.default_rng(0)
    numbers = np.exp2(rng.uniform(-30, 20, 2000)) * rng.choice([1, 1, 1, -1], 2000)
    every = EVERY_POWER.astype(np.float64)
    nearest = every[np.abs(numbers[:, None] - every).argmin(axis=1)]
    np.testing.assert_array_equal(nearest_power(numbers), nearest)
    np.testing.assert_array_equal(nearest_power(every), every)
    np.testing.assert_array_equal(nearest_power(1.5 * every), every)
