"""Encode and decode on a group's grid, over every width, group size, zero kind and ragged shape.

In: random weights and parameters at fp16. Out: codes, compared with a search over all levels.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.errors import SolveError
from crumb.formats.catalog import GROUP_SIZES, INTEGERS, ROW, ZeroKind, make_format
from crumb.formats.grid import (
    GroupParameters,
    decode_reference,
    encode_reference,
    group_of_column,
    make_parameters,
)

UNIT = 2.0**-24  # half a unit in the last place of f32 at 1: the error of one rounding
WIDTHS = [row.bits for row in INTEGERS.values()]
KINDS = pytest.mark.parametrize("zero", list(ZeroKind))
BITS = pytest.mark.parametrize("bits", WIDTHS)


@st.composite
def shapes(draw):
    """(group_size, rows, in_features) with ragged last groups."""
    group_size = draw(st.sampled_from(GROUP_SIZES))
    in_features = draw(st.integers(max(group_size, 1), max(group_size, 1) + 150))
    return group_size, draw(st.integers(1, 4)), in_features


def random_parameters(format, rows, in_features, rng):
    """Scales of either sign over eight powers of ten (0 among them), any stored offset."""
    shape = (rows, format.groups(in_features))
    scale = rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-6, 2, shape)
    scale[rng.random(shape) < 0.1] = 0
    offset = np.full(shape, format.fixed_zero_point, np.float32)
    if format.zero is ZeroKind.VARIABLE:
        offset = rng.integers(0, 1 << format.bits, shape)
    if format.zero is ZeroKind.MINIMUM:
        offset = scale * rng.uniform(-300, 300, shape)
    return make_parameters(format, scale.astype(np.float32), offset.astype(np.float32))


def spread(parameters, format, in_features):
    """Scale and offset of each column, f64."""
    group = group_of_column(format, in_features)
    scale = parameters.scale.astype(np.float64)[:, group]
    return scale, parameters.offset(format).astype(np.float64)[:, group]


@BITS
@KINDS
@settings(deadline=None, max_examples=20)
@given(shape=shapes(), seed=st.integers(0, 2**32 - 1), reach=st.sampled_from([0.3, 1.0, 40.0]))
def test_encoding_picks_the_nearest_level(bits, zero, shape, seed, reach):
    group_size, rows, in_features = shape
    rng = np.random.default_rng(seed)
    format = make_format(bits, group_size, zero)
    parameters = random_parameters(format, rows, in_features, rng)
    scale, offset = spread(parameters, format, in_features)
    span = (1 << bits) * np.abs(scale)
    start = offset if zero is ZeroKind.MINIMUM else 0
    weights = (start + span * reach * rng.standard_normal(scale.shape)).astype(np.float32)

    codes = encode_reference(weights, parameters, format)
    levels = np.arange(1 << bits, dtype=np.float64)
    if zero is ZeroKind.MINIMUM:
        values = levels * scale[..., None] + offset[..., None]
    else:
        values = (levels - offset[..., None]) * scale[..., None]
    miss = np.abs(weights[..., None] - values)
    chosen = np.take_along_axis(miss, codes[..., None].astype(np.intp), -1)[..., 0]
    # Two roundings (subtract, divide) move the quotient by at most 2 UNIT |w - base|/|scale|, so a
    # level is taken for the nearest only if its distance exceeds the best by twice that share.
    base = offset if zero is ZeroKind.MINIMUM else 0.0
    bound = 4 * UNIT * np.abs(weights - base) * (1 + UNIT) + np.finfo(np.float32).tiny
    assert (chosen - miss.min(-1) <= bound).all()


@BITS
@KINDS
@settings(deadline=None, max_examples=20)
@given(shape=shapes(), seed=st.integers(0, 2**32 - 1))
def test_encoding_undoes_decoding_where_the_scale_is_not_zero(bits, zero, shape, seed):
    group_size, rows, in_features = shape
    rng = np.random.default_rng(seed)
    format = make_format(bits, group_size, zero)
    parameters = random_parameters(format, rows, in_features, rng)
    codes = rng.integers(0, 1 << bits, (rows, in_features)).astype(np.uint8)
    again = encode_reference(decode_reference(codes, parameters, format), parameters, format)
    scale, offset = spread(parameters, format, in_features)
    # A minimum of at most 2^16 scales leaves the levels 2^7 f32 roundings apart.
    apart = scale != 0
    if zero is ZeroKind.MINIMUM:
        apart &= np.abs(offset) <= 2.0**16 * np.abs(scale)
    np.testing.assert_array_equal(again[apart], codes[apart])


@BITS
@KINDS
def test_decoding_follows_the_formula_of_the_catalog(bits, zero):
    format = make_format(bits, 32, zero)
    codes = np.arange(min(1 << bits, 64), dtype=np.uint8)[None].repeat(2, 0)
    codes = np.pad(codes, ((0, 0), (0, 64 - codes.shape[1])))
    scale = np.array([[0.5, -0.25], [2.0, 0.0]], np.float32)
    offset = np.array([[1, 3], [2, 0]], np.float32)
    parameters = make_parameters(format, scale, offset)
    decoded = decode_reference(codes, parameters, format)
    for row in range(2):
        for column in range(64):
            code, s = int(codes[row, column]), float(scale[row, column // 32])
            o = float(offset[row, column // 32])
            formulas = {
                ZeroKind.FIXED: s * (code - 2 ** (bits - 1)),
                ZeroKind.VARIABLE: s * (code - o),
                ZeroKind.MINIMUM: s * code + o,
            }
            assert decoded[row, column] == formulas[zero]  # all exact in f32


@BITS
@KINDS
def test_weights_beyond_the_grid_take_its_ends(bits, zero):
    format = make_format(bits, ROW, zero)
    largest = np.finfo(np.float32).max
    offset = np.array([[1.0]], np.float32)
    for scale, ends in ((1.0, [0, (1 << bits) - 1]), (-1.0, [(1 << bits) - 1, 0])):
        parameters = make_parameters(format, np.array([[scale]], np.float32), offset)
        weights = np.array([[-largest, largest]], np.float32)
        assert encode_reference(weights, parameters, format)[0].tolist() == ends
    smallest = np.array([[2.0**-24]], np.float32)  # the smallest fp16: the quotient overflows f32
    parameters = make_parameters(format, smallest, offset)
    ends = [0, (1 << bits) - 1]
    assert encode_reference(weights, parameters, format)[0].tolist() == ends


@KINDS
def test_a_scale_of_zero_decodes_to_the_groups_zero(zero):
    format = make_format(4, ROW, zero)
    offset = np.array([[2.5 if zero is ZeroKind.MINIMUM else 2.0]], np.float32)
    parameters = make_parameters(format, np.zeros((1, 1), np.float32), offset)
    codes = encode_reference(np.array([[2.5, 2.5]], np.float32), parameters, format)
    decoded = decode_reference(codes, parameters, format)
    assert decoded.tolist() == ([[2.5, 2.5]] if zero is ZeroKind.MINIMUM else [[0.0, 0.0]])


def test_ties_go_to_the_even_multiple_of_the_scale():
    format = make_format(4, ROW, ZeroKind.FIXED)
    parameters = GroupParameters(np.array([[2.0]], np.float16))
    codes = encode_reference(np.array([[1.0, 3.0, -1.0, -3.0]], np.float32), parameters, format)
    assert codes[0].tolist() == [8, 10, 8, 6]


@pytest.mark.parametrize("value", [65520.0, -1e9, np.inf, np.nan])
def test_a_scale_beyond_fp16_is_refused(value):
    format = make_format(4, 32, ZeroKind.FIXED)
    with pytest.raises(SolveError, match="does not fit fp16"):
        make_parameters(format, np.array([[1.0, value]], np.float32), np.full((1, 2), 8.0))


@pytest.mark.parametrize("value", [65520.0, -1e9, np.nan])
def test_a_minimum_beyond_fp16_is_refused(value):
    format = make_format(4, 32, ZeroKind.MINIMUM)
    offset = np.array([[0.0, value]], np.float32)
    with pytest.raises(SolveError, match="does not fit fp16"):
        make_parameters(format, np.ones((1, 2), np.float32), offset)


def test_the_largest_fp16_is_accepted():
    format = make_format(4, 32, ZeroKind.MINIMUM)
    edge = np.array([[65504.0, -65504.0]], np.float32)
    parameters = make_parameters(format, edge, edge[:, ::-1])
    assert parameters.scale.astype(np.float32).tolist() == edge.tolist()
    assert parameters.offset(format).tolist() == edge[:, ::-1].tolist()


@KINDS
def test_parameters_store_what_their_zero_kind_stores(zero):
    ones = np.ones((2, 3), np.float32)
    parameters = make_parameters(make_format(4, 32, zero), ones, 3 * ones)
    assert (parameters.zero_point is not None) == (zero is ZeroKind.VARIABLE)
    assert (parameters.minimum is not None) == (zero is ZeroKind.MINIMUM)
