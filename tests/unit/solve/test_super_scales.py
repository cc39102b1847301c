"""Scales of super-blocks: exact where the grid allows, no worse than what is tried, never beyond.

In: random layers, and numbers laid on a format's own grid. Out: parameters as the format stores
them. The costs of a fit are compared in f64, with candidates written out here.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from crumb.errors import SolveError, UsageError
from crumb.formats.catalog import CATALOG, CodeRow, Format, ScaleKind, SuperBlock, ZeroKind
from crumb.formats.grid import (
    GroupParameters,
    decode_reference,
    encode_reference,
)
from crumb.kernels.grid_search import grid_search
from crumb.solve import super_scales
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import AS_PUBLISHED, Method, Scales, SolveSettings
from crumb.solve.round import solve_round
from crumb.solve.scales import fit_scales
from crumb.solve.super_scales import SHARES, nearest_scales, shared_scales

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")
OWN = ("super2", "super3", "super4")
EVERY_TYPE = pytest.mark.parametrize("name", TYPES + OWN)
UNIT = 2.0**-24
HALF_UNIT = 2.0**-11  # of fp16


def format_of(name):
    return CATALOG[name].only_format()


def layer(rows=24, columns=512, seed=0):
    rng = np.random.default_rng([seed, rows, columns])
    weights = rng.standard_t(4, (rows, columns)).astype(np.float32)
    return weights, (10.0 ** rng.uniform(-1, 1, columns)).astype(np.float32)


def on_grid(format, rows=12, columns=512, seed=0):
    """Weights that the format holds exactly, every group using its whole range of codes."""
    rng = np.random.default_rng([seed, rows])
    block, groups = format.row.super_block, format.groups(columns)
    whole = rng.integers(max(block.lowest, -block.highest), block.highest + 1, (rows, groups))
    whole[whole == 0] = block.highest  # a scale of 0 would say nothing of its codes
    whole[:, :: block.width // format.group_size] = block.highest
    scale = rng.uniform(0.001, 0.1, (rows, format.blocks(columns))).astype(np.float16)
    codes = rng.integers(0, format.row.largest_code + 1, (rows, columns)).astype(np.uint8)
    codes[:, :: format.group_size] = 0
    codes[:, 1 :: format.group_size] = format.row.largest_code
    parameters = GroupParameters(scale, sub_scale=whole.astype(np.int8))
    if format.zero is ZeroKind.MINIMUM:
        whole = rng.integers(0, block.highest + 1, (rows, groups)).astype(np.uint8)
        whole[:, :: block.width // format.group_size] = block.highest
        minimum = (3 * scale).astype(np.float16)
        parameters = replace(parameters, minimum=minimum, sub_minimum=whole)
    return decode_reference(codes, parameters, format)


def cost(weights, importance, parameters, format):
    """Sum of h (w - decoded)^2 in f64."""
    codes = encode_reference(weights, parameters, format)
    miss = weights.astype(np.float64) - decode_reference(codes, parameters, format)
    return float(np.sum(importance * miss**2))


@EVERY_TYPE
@pytest.mark.parametrize("scales", list(Scales))
def test_what_is_stored_is_what_the_format_stores(name, scales):
    format, (weights, importance) = format_of(name), layer()
    block = format.row.super_block
    found = fit_scales(weights, importance, format, scales)
    assert (found.scale.dtype, found.scale.shape) == (np.float16, (24, 2))
    assert found.sub_scale.shape == (24, format.groups(512))
    assert block.lowest <= found.sub_scale.min() <= found.sub_scale.max() <= block.highest
    has_minimum = format.zero is ZeroKind.MINIMUM
    assert (found.minimum is not None) == (found.sub_minimum is not None) == has_minimum
    if has_minimum:
        assert (found.minimum.dtype, found.sub_minimum.dtype) == (np.float16, np.uint8)
        assert found.sub_minimum.max() <= block.highest


@EVERY_TYPE
def test_weights_that_lie_on_the_grid_are_found_again(name):
    """The search finds their scales to f32's roundings, and the grid's own are the nearest."""
    format = format_of(name)
    weights = on_grid(format)
    found = fit_scales(weights, np.ones(512, np.float32), format, Scales.SEARCH)
    codes = encode_reference(weights, found, format)
    np.testing.assert_array_equal(decode_reference(codes, found, format), weights)


def tiny_format(lowest, highest, zero=ZeroKind.FIXED):
    """Two groups of four weights share a scale."""
    block = SuperBlock(8, lowest, highest, 2)
    return Format(CodeRow("tiny", 3, ScaleKind.SUPER, (zero,), (4,), super_block=block), 4, zero)


def share_cost(wanted, weight, unit, whole):
    return np.sum(weight * (wanted - unit * whole) ** 2, axis=-1)


@pytest.mark.parametrize(("lowest", "highest"), [(-2, 1), (0, 3), (-4, 3), (0, 7)])
def test_a_shared_scale_is_no_worse_than_any_it_starts_from(lowest, highest):
    """For given whole numbers the fp16 number nearest to the least-squares one is the best of all,
    and rounding again only helps, so each start bounds the result."""
    rng = np.random.default_rng(highest)
    wanted = rng.uniform(0.1, 1, (50, 2)) * (rng.choice([-1, 1], (50, 2)) if lowest else 1)
    wanted = wanted.astype(np.float32)
    weight = rng.uniform(0.1, 10, (50, 2)).astype(np.float32)
    found = super_scales._share(wanted, weight, tiny_format(lowest, highest))
    exact = share_cost(wanted.astype(np.float64), weight, found.unit, found.whole)
    peak = np.take_along_axis(wanted, np.abs(wanted).argmax(1)[:, None], 1)
    for share, end in itertools.product(SHARES, (lowest, highest)):
        if end:
            unit = (peak / (share * end)).astype(np.float16).astype(np.float64)
            whole = np.clip(np.rint(wanted / unit), lowest, highest)
            # Two squares of f32 differences: a few roundings of what is subtracted.
            roundings = 8 * UNIT * np.sum(weight * wanted.astype(np.float64) ** 2, axis=1)
            assert (exact <= share_cost(wanted, weight, unit, whole) + roundings).all()


@pytest.mark.parametrize(("lowest", "highest"), [(-2, 1), (0, 3), (-4, 3)])
def test_a_shared_scale_is_mostly_the_very_best(lowest, highest):
    """Against every pair of whole numbers, each with its least-squares scale: in 2 of 3 at least
    (measured: 99, 80 and 100 of 100), for the ladder of starts is made for more whole numbers."""
    rng = np.random.default_rng(highest)
    wanted = rng.uniform(0.1, 1, (200, 2)).astype(np.float32)
    weight = rng.uniform(0.1, 10, (200, 2)).astype(np.float32)
    found = super_scales._share(wanted, weight, tiny_format(lowest, highest))
    exact = share_cost(wanted.astype(np.float64), weight, found.unit, found.whole)
    best = np.full(200, np.inf)
    for pair in itertools.product(range(lowest, highest + 1), repeat=2):
        if any(pair):
            whole = np.array(pair, np.float64)
            unit = np.sum(weight * wanted * whole, 1) / np.sum(weight * whole**2, 1)
            best = np.minimum(best, share_cost(wanted, weight, unit[:, None], whole))
    energy = np.sum(weight * wanted.astype(np.float64) ** 2, axis=1)
    assert (exact >= best - 8 * UNIT * energy).all()
    # The stored scale is an fp16 number: it may miss the least-squares one by half a unit.
    rounded = best + HALF_UNIT**2 * energy + 2 * HALF_UNIT * np.sqrt(best * energy)
    assert np.mean(exact <= rounded) >= 2 / 3


@pytest.mark.parametrize("sign", [1, -1])
def test_one_group_that_matters_keeps_its_scale_to_a_rounding_of_fp16(sign):
    wanted = np.array([[sign * 0.7321, 0.0101]], np.float32)
    weight = np.array([[1.0, 1e-12]], np.float32)
    found = super_scales._share(wanted, weight, tiny_format(-4, 3))
    assert abs(found.product()[0, 0] - wanted[0, 0]) <= HALF_UNIT * 0.7321


@EVERY_TYPE
def test_the_fit_has_less_error_than_rounding_the_searched_scales(name):
    format, (weights, importance) = format_of(name), layer(64)
    importance /= importance.mean()
    searched = grid_search(weights, importance, format)
    fitted = cost(
        weights, importance, shared_scales(weights, importance, format, *searched), format
    )
    rounded = cost(weights, importance, nearest_scales(format, *searched), format)
    assert fitted < rounded


@EVERY_TYPE
def test_rows_fitted_apart_are_the_rows_fitted_together(name, monkeypatch):
    format, (weights, importance) = format_of(name), layer(40)
    together = fit_scales(weights, importance, format, Scales.SEARCH)
    monkeypatch.setattr(super_scales, "SLAB_ROWS", 16)
    apart = fit_scales(weights, importance, format, Scales.SEARCH)
    for field, array in vars(together).items():
        np.testing.assert_array_equal(getattr(apart, field), array)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("columns", [32, 288, 576])
@pytest.mark.parametrize("scales", list(Scales))
def test_a_smaller_super_block_is_fitted_as_one_filled_up_with_zeros(name, columns, scales):
    format, (weights, _) = format_of(name), layer(24, columns)
    groups = format.groups(columns)
    filled = np.pad(weights, ((0, 0), (0, 32 * format.whole_groups(columns) - columns)))
    alone = fit_scales(weights, np.ones(columns, np.float32), format, scales)
    whole = fit_scales(filled, np.ones(filled.shape[1], np.float32), format, scales)
    np.testing.assert_array_equal(alone.scale, whole.scale)
    np.testing.assert_array_equal(alone.sub_scale[:, :groups], whole.sub_scale[:, :groups])
    assert (alone.sub_scale[:, groups:] == 0).all()


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("columns", [33, 100, 577])
def test_a_smaller_group_at_the_end_of_a_row_is_fitted_to_what_is_there(name, columns):
    format, (weights, importance) = format_of(name), layer(24, columns)
    found = fit_scales(weights, importance, format, Scales.SEARCH)
    last = weights[:, format.group_size * (format.groups(columns) - 1) :]
    codes = encode_reference(weights, found, format)
    miss = (weights - decode_reference(codes, found, format))[:, -last.shape[1] :]
    assert np.square(miss).sum() < 0.2 * np.square(last).sum()


@EVERY_TYPE
@pytest.mark.parametrize("scales", list(Scales))
def test_a_super_block_of_zeros_decodes_to_zeros(name, scales):
    format, (weights, importance) = format_of(name), layer()
    weights[:, 256:] = 0
    weights[3] = 0
    found = fit_scales(weights, importance, format, scales)
    decoded = decode_reference(encode_reference(weights, found, format), found, format)
    assert (decoded[:, 256:] == 0).all()
    assert (decoded[3] == 0).all()


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q5_k"])
def test_groups_above_zero_are_fitted_with_the_minima_there_are(name):
    format, (weights, importance) = format_of(name), layer()
    weights = np.abs(weights) + 1
    found = fit_scales(weights, importance, format, Scales.SEARCH)
    assert (found.offset(format) <= 0).all()
    to_peak = weights.reshape(24, -1, format.group_size).max(2) / format.row.largest_code
    naive = nearest_scales(format, to_peak, np.zeros_like(to_peak))
    assert cost(weights, importance, found, format) < cost(weights, importance, naive, format)


@pytest.mark.parametrize("name", ["q3_k", "q6_k"])
def test_scales_of_either_sign_share_a_super_block(name):
    """The longer side of each group is the one with a code more."""
    format = format_of(name)
    rng = np.random.default_rng(1)
    codes = rng.integers(-format.fixed_zero_point, format.fixed_zero_point, (8, 256))
    codes[:, :: format.group_size] = -format.fixed_zero_point
    signs = np.where(np.arange(16) % 2, 1, -1).repeat(16)
    weights = (codes * signs * (31 if name == "q3_k" else 127) / 2048).astype(np.float32)
    found = fit_scales(weights, np.ones(256, np.float32), format, Scales.SEARCH)
    np.testing.assert_array_equal(np.sign(found.group_scale()), np.tile(signs[::16], (8, 1)))
    decoded = decode_reference(encode_reference(weights, found, format), found, format)
    np.testing.assert_array_equal(decoded, weights)


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_k", "q5_k"])
@pytest.mark.parametrize("scales", list(Scales))
def test_a_scale_that_overflows_fp16_is_refused_without_a_warning(name, scales):
    """q6_k reaches 65504 * 128 * 32, further than any weight that is not refused before."""
    format, (weights, importance) = format_of(name), layer()
    weights = (weights / np.abs(weights).max()).astype(np.float32)
    with pytest.raises(SolveError, match="does not fit fp16"):
        fit_scales(weights * np.float32(1.6e7), importance, format, scales)
    fits = np.float32(65504 * format.row.super_block.highest / 2)
    assert np.isfinite(fit_scales(weights * fits, importance, format, scales).scale).all()


@EVERY_TYPE
def test_weights_too_small_for_fp16_scales_become_zeros(name):
    format, (weights, importance) = format_of(name), layer()
    for size in (1e-12, 1e-38, 1e-44):
        tiny = (weights * np.float32(size)).astype(np.float32)
        found = fit_scales(tiny, importance, format, Scales.SEARCH)
        decoded = decode_reference(encode_reference(tiny, found, format), found, format)
        assert (np.abs(decoded) <= 2.0**-24).all()


@EVERY_TYPE
def test_gptq_leaves_less_output_error_than_rounding(name, make_problem, direct):
    format = format_of(name)
    problem = make_problem(24, 256, format, SolveSettings())
    solved, rounded = solve_gptq(problem), solve_round(problem)
    exact = direct(problem, solved)
    assert abs(solved.report.error - exact.error) <= exact.error_bound
    assert solved.report.error < 0.8 * rounded.report.error
    assert solved.parameters.sub_scale.shape == (24, format.groups(256))


@EVERY_TYPE
def test_groups_of_a_super_block_are_not_fitted_one_after_the_other(name, make_problem):
    problem = make_problem(8, 256, format_of(name), AS_PUBLISHED)
    with pytest.raises(UsageError, match=r"layer\.weight: the groups of a super-block"):
        solve_gptq(problem)
    rounding = replace(problem, settings=replace(AS_PUBLISHED, method=Method.ROUND))
    assert solve_round(rounding).codes.shape == (8, 256)
