"""Scales from extremes and by search: formulas by hand, and the search against its candidates."""

import numpy as np
import pytest

from crumb.errors import SolveError
from crumb.formats.catalog import INTEGERS, ROW, ZeroKind, make_format
from crumb.formats.grid import decode_columns, decode_reference, encode_columns, encode_reference
from crumb.kernels.grid_search import SHRINKS, grid_search
from crumb.solve.problem import Scales
from crumb.solve.scales import LARGEST_WEIGHT, fit_scales, minmax

KINDS = pytest.mark.parametrize("zero", list(ZeroKind))
BITS = pytest.mark.parametrize("bits", [row.bits for row in INTEGERS.values()])
UNIT = 2.0**-24


def layer(rows=16, columns=75, seed=0):
    rng = np.random.default_rng([seed, rows, columns])
    weights = rng.standard_t(4, (rows, columns)).astype(np.float32)
    return weights, (10.0 ** rng.uniform(-2, 1, columns)).astype(np.float32)


def score(weights, importance, scale, offset, format):
    """Sum of h (w - decoded)^2 of each group, for f32 scale and offset (rows, groups)."""
    starts = np.arange(0, weights.shape[1], format.group_width(weights.shape[1]))
    group = np.arange(weights.shape[1]) // format.group_width(weights.shape[1])
    scale, offset = scale[:, group], offset[:, group]
    codes = encode_columns(weights, scale, offset, format.row.largest_code, format.zero)
    values = decode_columns(codes, scale, offset, format.zero)
    miss = weights.astype(np.float64) - values
    return np.add.reduceat(importance * miss**2, starts, axis=1)


@pytest.mark.parametrize(
    ("bits", "zero", "row", "scale", "offset"),
    [
        (2, ZeroKind.FIXED, [-3, 1, 2], 2 * 3 / 3, 2),
        (4, ZeroKind.FIXED, [-3, 1, 7.5], 2 * 7.5 / 15, 8),
        (2, ZeroKind.VARIABLE, [-2, 1, 4], (4 + 2) / 3, 1),
        (2, ZeroKind.VARIABLE, [3, 5, 6], (6 - 0) / 3, 0),  # 0 is always inside
        (2, ZeroKind.VARIABLE, [-3, -5, -6], (0 + 6) / 3, 3),
        (2, ZeroKind.MINIMUM, [3, 5, 6], (6 - 3) / 3, 3),
        (3, ZeroKind.MINIMUM, [-7, 5, 7], (7 + 7) / 7, -7),
    ],
)
def test_scales_from_extremes_are_the_papers(bits, zero, row, scale, offset):
    found = minmax(np.array([row], np.float32), make_format(bits, ROW, zero))
    assert [float(part[0, 0]) for part in found] == [scale, offset]  # exact in f32


@KINDS
@pytest.mark.parametrize("scales", list(Scales))
def test_each_group_has_its_own_scale_and_a_ragged_one_too(zero, scales):
    format = make_format(4, 32, zero)
    weights, importance = layer(5, 75)
    together = fit_scales(weights, importance, format, scales)
    assert together.scale.shape == (5, 3)
    one_group = make_format(4, ROW, zero)
    # The same columns alone: min-max and, up to the mean importance, the search see no other group.
    importance = np.ones(75, np.float32)
    together = fit_scales(weights, importance, format, scales)
    for group in range(3):
        part = slice(32 * group, 32 * group + 32)
        alone = fit_scales(weights[:, part], importance[part], one_group, scales)
        for name in ("scale", "zero_point", "minimum"):
            one, other = getattr(together, name), getattr(alone, name)
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_array_equal(one[:, [group]], other)


def starting_candidates(weights, format):
    """The shrunk min-max grids that the search starts from, before any refit."""
    scale, offset = minmax(weights, format)
    largest = format.row.largest_code
    if format.zero is ZeroKind.FIXED:
        scale = scale * largest / 2 / format.fixed_zero_point
    for sign in (1, -1) if format.zero is ZeroKind.FIXED else (1,):
        for shrink in SHRINKS:
            shrunk = (sign * shrink * scale).astype(np.float32)
            if format.zero is ZeroKind.MINIMUM:  # around the middle of the group
                yield shrunk, (offset + (scale - shrunk) * largest / 2).astype(np.float32)
            else:
                yield shrunk, offset


@BITS
@KINDS
def test_the_search_is_no_worse_than_any_candidate_it_starts_from(bits, zero):
    weights, importance = layer()
    format = make_format(bits, 32, zero)
    best_scale, best_offset = grid_search(weights, importance, format)
    best = score(weights, importance, best_scale, best_offset, format)
    starts = np.arange(0, weights.shape[1], 32)
    for scale, offset in starting_candidates(weights, format):
        candidate = score(weights, importance, scale, offset, format)
        # A refit and a second rounding lower the sum. Scores of 32 squares are compared after 35
        # f32 roundings each; a weight w is rounded elsewhere than here only within 3 UNIT |w/s| of
        # a tie, where the two squares differ by 6 UNIT |w - base| |s|.
        base = np.repeat(offset, 32, axis=1)[:, :75] if zero is ZeroKind.MINIMUM else 0
        reach = np.add.reduceat(importance * np.abs(weights - base), starts, axis=1)
        ties = 6 * UNIT * reach * (np.abs(scale) + 2 * np.abs(best_scale))
        assert (best <= candidate * (1 + 2 * 35 * UNIT) + ties).all()


@KINDS
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_scales_have_less_weighted_error_than_the_extremes(bits, zero):
    weights, importance = layer(64, 128)
    format = make_format(bits, 32, zero)
    errors = {}
    for scales in Scales:
        parameters = fit_scales(weights, importance, format, scales)
        codes = encode_reference(weights, parameters, format)
        miss = weights - decode_reference(codes, parameters, format)
        errors[scales] = float(np.sum(importance * miss**2))
    assert errors[Scales.SEARCH] < errors[Scales.MINMAX]


def test_a_search_with_a_fixed_zero_may_choose_a_negative_scale():
    # Codes reach -4 to 3 times the scale: the larger end must fall on the longer side.
    weights = np.array([[4.0, -3.0, 1.0, 2.0]], np.float32)
    format = make_format(3, ROW, ZeroKind.FIXED)
    parameters = fit_scales(weights, np.ones(4, np.float32), format, Scales.SEARCH)
    assert parameters.scale[0, 0] == -1
    codes = encode_reference(weights, parameters, format)
    np.testing.assert_array_equal(decode_reference(codes, parameters, format), weights)


@KINDS
@BITS
def test_weights_that_lie_on_a_grid_are_found_again(bits, zero):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (8, 128)).astype(np.float32)
    codes[:, :2] = [0, (1 << bits) - 1]
    shift = {ZeroKind.FIXED: 1 << (bits - 1), ZeroKind.VARIABLE: 1, ZeroKind.MINIMUM: 0}[zero]
    weights = (codes - np.float32(shift)) / 4 + np.float32(zero is ZeroKind.MINIMUM)
    format = make_format(bits, ROW, zero)
    parameters = fit_scales(weights, np.ones(128, np.float32), format, Scales.SEARCH)
    found = encode_reference(weights, parameters, format)
    np.testing.assert_array_equal(decode_reference(found, parameters, format), weights)


@KINDS
@pytest.mark.parametrize("scales", list(Scales))
def test_a_group_of_zeros_decodes_to_zeros(zero, scales):
    format = make_format(3, 32, zero)
    weights, importance = np.zeros((3, 40), np.float32), np.ones(40, np.float32)
    parameters = fit_scales(weights, importance, format, scales)
    codes = encode_reference(weights, parameters, format)
    assert (decode_reference(codes, parameters, format) == 0).all()


@KINDS
@pytest.mark.parametrize("importance", [0.0, -1.0])
def test_importance_without_a_positive_mean_counts_every_column_alike(zero, importance):
    weights, _ = layer()
    format = make_format(3, 32, zero)
    given = fit_scales(weights, np.full(75, importance, np.float32), format, Scales.SEARCH)
    alike = fit_scales(weights, np.ones(75, np.float32), format, Scales.SEARCH)
    np.testing.assert_array_equal(given.scale, alike.scale)


@KINDS
def test_a_column_without_importance_does_not_disturb_the_others(zero):
    # Seven columns lie on the grid of scale 1; the eighth lies between its levels. With a millionth
    # of the mean importance it moves a fitted scale by 1e-6, which fp16 rounds away.
    rng = np.random.default_rng(0)
    format = make_format(2, ROW, zero)
    shift = {ZeroKind.FIXED: 2, ZeroKind.VARIABLE: 1, ZeroKind.MINIMUM: 1}[zero]
    weights = (rng.integers(0, 4, (64, 8)) - shift).astype(np.float32)
    weights[:, :2] = [0 - shift, 3 - shift]
    weights[:, 7] = rng.uniform(0 - shift, 3 - shift, 64)
    importance = np.ones(8, np.float32)
    importance[7] = 0
    parameters = fit_scales(weights, importance, format, Scales.SEARCH)
    codes = encode_reference(weights, parameters, format)
    values = decode_reference(codes, parameters, format)
    np.testing.assert_array_equal(values[:, :7], weights[:, :7])


@KINDS
@pytest.mark.parametrize("scales", list(Scales))
@pytest.mark.parametrize("size", [1.01 * LARGEST_WEIGHT, 1e19, 1e30, 3e38])
def test_weights_beyond_any_fp16_scale_are_refused_without_a_warning(zero, scales, size):
    weights, importance = layer()
    weights = (weights / np.abs(weights).max() * size).astype(np.float32)
    with pytest.raises(SolveError, match="too large for fp16"):
        fit_scales(weights, importance, make_format(4, 32, zero), scales)


@pytest.mark.parametrize("scales", list(Scales))
def test_a_scale_that_overflows_fp16_is_refused(scales):
    weights, importance = layer()
    weights = (weights / np.abs(weights).max() * 1e6).astype(np.float32)
    with pytest.raises(SolveError, match="does not fit fp16"):
        fit_scales(weights, importance, make_format(2, 32, ZeroKind.FIXED), scales)


@BITS
def test_a_zero_point_of_subnormal_weights_is_still_a_code(bits):
    smallest = np.finfo(np.float32).smallest_subnormal
    weights = -np.arange(400, dtype=np.float32)[:, None] * smallest
    _, zero_point = minmax(weights, make_format(bits, ROW, ZeroKind.VARIABLE))
    assert zero_point.max() <= (1 << bits) - 1
