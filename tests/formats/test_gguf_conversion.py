"""From our formats and from floats to GGUF's types: what stays equal, and how far the rest moves.

In: random codes and parameters of every format, random weights. Out: equal weights where a type
holds the format, and elsewhere errors below what the grid of the super-blocks explains.
"""

import numpy as np
import pytest
from gguf_matrices import QUANTIZED, random_of_type
from hypothesis import given, settings
from hypothesis import strategies as st
from random_matrices import random_matrix

from crumb.errors import SolveError, UsageError
from crumb.formats.catalog import CATALOG, GROUP_SIZES, INTEGERS, ROW, ZeroKind, format_of_row
from crumb.formats.grid import GroupParameters, decode_reference, encode_reference
from crumb.formats.layouts.gguf_blocks import decode_floats, encode_blocks
from crumb.formats.layouts.gguf_conversion import (
    EXACT,
    NARROW,
    PLAIN,
    ROUNDED,
    TYPE_OF_BITS,
    WIDER,
    convert,
    exact_type,
    rounded_type,
    that_fits,
    wider_exact_type,
)
from crumb.formats.layouts.gguf_rounding import quantize_floats
from crumb.formats.layouts.gguf_types import GGUF_TYPES, ScaleCode

HALF_UNIT = 2.0**-11  # largest relative error of rounding to fp16, in its normal range
UNIT = 2.0**-24  # the same of f32

FORMATS = [
    format_of_row(CATALOG[name], group_size, zero)
    for name in INTEGERS
    for group_size in GROUP_SIZES
    for zero in ZeroKind
]
NAMES = [format.name for format in FORMATS]
FIXED_SUPER = [name for (_, zero), name in ROUNDED.items() if zero is ZeroKind.FIXED]
SEEDS = st.integers(0, 2**32 - 1)


def matrix_of(format, rows, columns, seed=0):
    """Any codes and scales; zero points are codes."""
    codes, parameters = random_matrix(format, rows, columns, seed)
    if parameters.zero_point is not None:
        parameters.zero_point[...] &= format.row.largest_code
    return codes, parameters


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
@pytest.mark.parametrize("columns", [256, 192, 512 + 64])
def test_a_type_that_holds_the_format_leaves_every_weight_unchanged(format, columns):
    names = {exact_type(format, columns), wider_exact_type(format, columns)} - {None}
    codes, parameters = matrix_of(format, 5, columns)
    expected = decode_reference(codes, parameters, format)
    for name in names:
        *found, changed = convert(codes, parameters, format, name)
        raw = encode_blocks(name, *found)
        np.testing.assert_array_equal(decode_floats(name, raw, columns), expected)
        assert changed == 0


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        # format, in_features: exact, wider, rounded
        ("int4-g32-fixed", 64, ("Q4_0", None, None)),
        ("int4-g128-fixed", 160, ("Q4_0", None, None)),
        ("int4-g128-fixed", 144, (None, None, None)),
        ("int4-row-fixed", 96, ("Q4_0", None, None)),
        ("int4-g64-minimum", 256, ("Q4_1", None, "Q4_K")),
        ("int5-g32-fixed", 256, ("Q5_0", None, None)),
        ("int5-g32-minimum", 256, ("Q5_1", None, "Q5_K")),
        ("int8-g128-fixed", 256, ("Q8_0", None, None)),
        ("int2-g64-fixed", 128, ("Q2_0", "Q4_0", None)),
        ("int2-g32-fixed", 128, (None, "Q4_0", None)),
        ("int2-row-fixed", 96, (None, "Q4_0", None)),
        ("int3-g128-fixed", 256, (None, "Q4_0", "Q3_K")),
        ("int3-g128-fixed", 128, (None, "Q4_0", None)),
        ("int3-g128-variable", 256, (None, "Q4_0", None)),
        ("int4-g128-variable", 256, (None, "Q5_0", "Q4_K")),
        ("int2-g64-variable", 512, (None, "Q4_0", "Q2_K")),
        ("int6-g64-fixed", 256, (None, "Q8_0", "Q6_K")),
        ("int6-g64-minimum", 256, (None, None, None)),
        ("int8-g64-variable", 256, (None, None, None)),
        ("q3_k-g16-fixed", 256, ("Q3_K", None, None)),
        ("iq4_nl-g32-fixed", 32, ("IQ4_NL", None, None)),
        ("mxfp4-g32-fixed", 32, ("MXFP4", None, None)),
    ],
)
def test_the_type_of_a_format_depends_on_its_groups_and_inputs(name, columns, expected):
    row, group, zero = name.split("-")
    format = format_of_row(CATALOG[row], ROW if group == "row" else int(group[1:]), zero)
    chosen = (exact_type, wider_exact_type, rounded_type)
    assert tuple(choose(format, columns) for choose in chosen) == expected


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_type_is_the_exact_one_of_its_own_format(name):
    row = GGUF_TYPES[name]
    assert row.format is not None
    assert exact_type(row.format, 256) == name
    matrix = random_of_type(row, 3, 256)
    assert convert(*matrix, row.format, name) == (*matrix, 0.0)


@pytest.mark.parametrize(("row", "zero"), ROUNDED, ids=lambda value: str(value))
def test_one_scale_for_a_whole_row_loses_nothing_in_super_blocks(row, zero):
    format = format_of_row(CATALOG[row], ROW, zero)
    codes, parameters = matrix_of(format, 9, 512)
    *_, changed = convert(codes, parameters, format, ROUNDED[row, zero])
    assert changed == 0


@pytest.mark.parametrize(("row", "zero"), ROUNDED, ids=lambda value: str(value))
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_scales_chosen_on_the_grid_of_super_blocks_lose_nothing(row, zero, seed):
    name = ROUNDED[row, zero]
    format = format_of_row(CATALOG[row], 32, zero)
    rng = np.random.default_rng(seed)
    codes, parameters = matrix_of(format, 4, 512, seed)
    # Units of 4 bits times whole numbers of 4 bits: every scale and minimum is exact in fp16.
    unit = np.repeat(rng.integers(8, 16, (4, 2)) / 1024, 8, axis=1)
    scale = (unit * rng.integers(1, 16, unit.shape)).astype(np.float16)
    minimum = zero_point = None
    if zero is ZeroKind.MINIMUM:
        minimum = (-unit * rng.integers(0, 16, unit.shape)).astype(np.float16)
    if zero is ZeroKind.VARIABLE:  # one for each super-block, so their minima have the same grid
        zero_point = np.repeat(rng.integers(0, 4, (4, 2)).astype(np.uint8), 8, axis=1)
    parameters = GroupParameters(scale, zero_point, minimum)
    *found, changed = convert(codes, parameters, format, name)
    assert changed == 0
    target = GGUF_TYPES[name].format
    assert target is not None
    np.testing.assert_array_equal(
        decode_reference(*found, target), decode_reference(codes, parameters, format)
    )


@pytest.mark.parametrize("name", FIXED_SUPER)
def test_a_super_block_that_uses_both_ends_of_its_whole_numbers_loses_nothing(name):
    row = next(key[0] for key, value in ROUNDED.items() if value == name)
    format = format_of_row(CATALOG[row], 32, ZeroKind.FIXED)
    block = GGUF_TYPES[name].format.row.super_block
    rng = np.random.default_rng(5)
    codes, _ = matrix_of(format, 4, 512)
    # Units of 4 bits times whole numbers of 7 at most, or a power of two: exact in fp16.
    unit = np.repeat(rng.integers(8, 16, (4, 2)) / 1024, 8, axis=1)
    whole = rng.integers(block.lowest, block.highest + 1, unit.shape)
    whole[:, ::8], whole[:, 1::8] = block.highest, block.lowest
    *_, changed = convert(codes, GroupParameters((unit * whole).astype(np.float16)), format, name)
    assert changed == 0


@pytest.mark.parametrize("name", FIXED_SUPER)
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, group_size=st.sampled_from([32, 64, 128]))
def test_rounded_scales_move_weights_by_less_than_half_a_step_of_the_largest(
    name, seed, group_size
):
    row = next(key[0] for key, value in ROUNDED.items() if value == name)
    format = format_of_row(CATALOG[row], group_size, ZeroKind.FIXED)
    target = GGUF_TYPES[name].format
    assert target is not None
    assert target.row.super_block is not None
    codes, parameters = matrix_of(format, 4, 512, seed)
    *found, _ = convert(codes, parameters, format, name)
    before, after = decode_reference(codes, parameters, format), decode_reference(*found, target)
    # The unit that gives the largest scale the highest whole number is among the starts. Rounded to
    # fp16 it misses each scale by half a unit and that rounding, and the winner's sum of squares is
    # no larger. The search's own f32 sums of 8 squares round 16 times at most.
    highest = target.row.super_block.highest
    peak = np.abs(parameters.scale.astype(np.float64)).reshape(4, 2, -1).max(axis=2)
    half_step = peak / highest * (0.5 + highest * HALF_UNIT) * (1 + HALF_UNIT)
    levels = codes.astype(np.float64) - format.fixed_zero_point
    bound = np.square(half_step) * np.square(levels).reshape(4, 2, 256).sum(axis=2)
    moved = np.square(after.astype(np.float64) - before).reshape(4, 2, 256).sum(axis=2)
    assert (moved <= bound * (1 + 32 * UNIT)).all()


def test_the_change_is_the_largest_share_of_a_blocks_largest_weight():
    format = format_of_row(CATALOG["int4"], 32, ZeroKind.VARIABLE)
    codes = np.full((1, 64), 15, np.uint8)
    codes[0, :32] = 0
    parameters = GroupParameters(
        np.array([[1 + 2**-10, 1.0]], np.float16), np.array([[3, 3]], np.uint8)
    )
    *found, changed = convert(codes, parameters, format, "Q4_1")
    # 3 * (1 + 2^-10) lies between the fp16 numbers 3 and 3 + 2^-9, a tie at 3 + 1.5 * 2^-9.
    weight, rounded = 3 * (1 + 2**-10), -float(found[1].minimum[0, 0])
    assert rounded in (3 + 2**-9, 3 + 2**-8)
    assert changed == np.float32(abs(rounded - weight) / weight)


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_a_minimum_makes_up_for_what_its_rounded_scale_takes_from_the_mean(seed):
    format = format_of_row(CATALOG["int4"], 32, ZeroKind.VARIABLE)
    codes, parameters = matrix_of(format, 4, 512, seed)
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 1, (4, 16)).astype(np.float16)
    parameters = GroupParameters(scale, rng.integers(6, 10, (4, 16)).astype(np.uint8))
    found, stored, _ = convert(codes, parameters, format, "Q4_K")
    target = GGUF_TYPES["Q4_K"].format
    moved = decode_reference(found, stored, target).astype(np.float64)
    moved -= decode_reference(codes, parameters, format)
    # What is left is the rounding of the minimum itself, and f32 sums of 32 codes up to 15.
    half_unit = np.repeat(stored.minimum.astype(np.float64), 8, axis=1) / 2
    assert (np.abs(moved.reshape(4, 16, 32).mean(axis=2)) <= half_unit + 32 * 15 * UNIT).all()


def test_groups_that_count_backwards_are_turned_around():
    format = format_of_row(CATALOG["int4"], 32, ZeroKind.VARIABLE)
    codes, _ = matrix_of(format, 1, 256)
    scale = np.where(np.arange(8) % 2, -0.5, 0.5).astype(np.float16)[None]
    parameters = GroupParameters(scale, np.full((1, 8), 7, np.uint8))
    found, stored, _ = convert(codes, parameters, format, "Q4_K")
    assert (stored.sub_scale >= 0).all()
    np.testing.assert_array_equal(found[:, :32], codes[:, :32])
    np.testing.assert_array_equal(found[:, 32:64], 15 - codes[:, 32:64])
    # (code - 7) * -0.5 is (15 - code) * 0.5 - 4: minima of 3.5 and 4, on the grid of 0.5.
    target = GGUF_TYPES["Q4_K"].format
    before = decode_reference(codes, parameters, format)
    np.testing.assert_array_equal(decode_reference(found, stored, target), before)


def test_a_zero_point_that_is_no_code_is_refused_by_the_wider_type():
    format = format_of_row(CATALOG["int4"], 32, ZeroKind.VARIABLE)
    codes = np.zeros((1, 32), np.uint8)
    parameters = GroupParameters(np.ones((1, 1), np.float16), np.array([[17]], np.uint8))
    with pytest.raises(UsageError, match="Q5_0 cannot keep the codes of int4-g32-variable"):
        convert(codes, parameters, format, "Q5_0")


@pytest.mark.parametrize(
    ("name", "group_size", "zero", "type_name"),
    [
        ("int8", 32, "fixed", "Q4_0"),  # codes are wider
        ("int8", 32, "minimum", "Q4_1"),
        ("int4", 32, "minimum", "Q5_0"),  # a minimum becomes no zero
        ("int4", 32, "fixed", "IQ4_NL"),  # a table
        ("int4", 32, "fixed", "F16"),
        ("int2", 32, "fixed", "Q2_0"),  # two groups in a block
        ("q4_k", 32, "minimum", "Q4_1"),  # a product of two numbers becomes no fp16
    ],
)
def test_codes_that_a_type_cannot_keep_are_refused(name, group_size, zero, type_name):
    format = format_of_row(CATALOG[name], group_size, zero)
    if format.row.super_block is None:
        matrix = matrix_of(format, 2, 256)
    else:
        matrix = random_of_type(GGUF_TYPES[name.upper()], 2, 256)
    with pytest.raises(UsageError, match="Convert the weights instead of the codes"):
        convert(*matrix, format, type_name)


def test_the_tables_name_types_and_formats_that_exist():
    for table in (EXACT, WIDER, ROUNDED):
        for (row, zero), name in table.items():
            assert zero in CATALOG[row].zeros
            target = GGUF_TYPES[name].format
            assert target is not None
            assert target.bits >= CATALOG[row].bits
    for bits, name in TYPE_OF_BITS.items():
        assert GGUF_TYPES[name].format.bits == bits


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_a_type_gives_way_to_one_of_smaller_blocks_and_at_last_to_floats(name):
    row = GGUF_TYPES[name]
    assert that_fits(name, 4 * row.block_weights) == name
    other = GGUF_TYPES[that_fits(name, 4 * 256 + 32)]
    assert 32 % other.block_weights == 0
    if row.format is not None:
        assert other.format is not None
        assert other.format.bits >= row.format.bits
        assert that_fits(name, 4 * 256 + 1) == PLAIN
    assert (other.name != name) == (name in NARROW)


def weights_of(rows, columns, seed):
    """Normal weights, groups of unlike size among them, and one group of zeros."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, columns)) * 2.0 ** rng.integers(-8, 1, (rows, 1))
    weights[0, :32] = 0
    weights[-1, -32:] = np.abs(weights[-1, -32:]) + 1
    return weights.astype(np.float32)


@pytest.mark.parametrize("name", QUANTIZED)
@settings(deadline=None, max_examples=8)
@given(seed=SEEDS)
def test_rounding_floats_picks_the_nearest_level_of_each_group(name, seed):
    format = GGUF_TYPES[name].format
    assert format is not None
    weights = weights_of(3, 256, seed)
    codes, parameters = quantize_floats(weights, name)
    miss = np.abs(decode_reference(codes, parameters, format).astype(np.float64) - weights)
    for code in range(1 << format.bits):
        other = decode_reference(np.full_like(codes, code), parameters, format)
        # Division and a minimum's subtraction round the quotient twice, decoding rounds twice more.
        slack = 4 * UNIT * (np.abs(weights) + 2 * np.abs(other))
        assert (miss <= np.abs(other.astype(np.float64) - weights) + slack).all()


@pytest.mark.parametrize("name", QUANTIZED)
@settings(deadline=None, max_examples=8)
@given(seed=SEEDS)
def test_rounding_floats_reaches_the_farthest_weight_of_each_group(name, seed):
    row = GGUF_TYPES[name]
    format = row.format
    assert format is not None
    weights = weights_of(3, 256, seed)
    codes, parameters = quantize_floats(weights, name)
    groups = (3, -1, format.group_size)
    farthest = np.abs(weights).reshape(groups).max(axis=2)
    found = decode_reference(codes, parameters, format)
    miss = np.abs(found - weights).reshape(groups).max(axis=2)
    step = np.abs(parameters.group_scale())
    if format.row.table is not None:
        step = step * np.diff(np.unique(format.row.table)).max()
    # Within reach a weight misses by half a step; a grid of two's complement lacks its last level,
    # which costs another half. Then the scale itself is rounded, and carries the farthest level: of
    # a super-block's groups each misses half a unit at the start, and the fit has no larger sum of
    # squares, all of which may be one group's.
    table = np.abs(format.row.table or [format.row.largest_code]).max()
    off = HALF_UNIT * farthest
    if format.row.super_block is not None:
        unit = np.abs(parameters.scale.astype(np.float64))
        unit = np.repeat(unit, step.shape[1] // unit.shape[1], axis=1)
        units = 0.5 + format.row.super_block.highest * HALF_UNIT
        units *= np.sqrt(format.row.super_block.width // format.group_size)
        off = unit * table * units
        if parameters.minimum is not None:
            unit = np.abs(parameters.minimum.astype(np.float64))
            unit = np.repeat(unit, step.shape[1] // unit.shape[1], axis=1)
            off = off + unit * units
    if row.scale_code is ScaleCode.EXPONENT:  # a power of two may clip, by less than half
        off = off + farthest / 2
    subnormal = 2.0**-25 * (table + 1)
    assert (miss <= step + off + subnormal + 4 * UNIT * farthest).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_weights_of_zero_stay_zero(name):
    format = GGUF_TYPES[name].format
    matrix = quantize_floats(np.zeros((2, 256), np.float32), name)
    assert not decode_reference(*matrix, format).any()
    encode_blocks(name, *matrix)


def test_the_level_that_an_int8_cannot_negate_stays_unused():
    codes, _ = quantize_floats(weights_of(64, 256, seed=3), "Q8_0")
    assert codes.min() == 1


@pytest.mark.parametrize("name", ["Q4_0", "MXFP4", "IQ4_NL"])
def test_weights_on_a_grid_with_its_farthest_level_are_kept(name):
    row = GGUF_TYPES[name]
    format = row.format
    assert format is not None
    codes, parameters = random_of_type(row, 4, 256, seed=7)
    parameters = GroupParameters(np.abs(parameters.scale) + np.float16(0))
    if name == "MXFP4":  # both zeros decode to 0, of which the first is written
        codes = np.where(codes == 8, 0, codes).astype(np.uint8)
    codes[:, ::32] = {"Q4_0": 0, "IQ4_NL": 0, "MXFP4": 15}[name]
    again = quantize_floats(decode_reference(codes, parameters, format), name)
    np.testing.assert_array_equal(again[0], codes)
    np.testing.assert_array_equal(again[1].scale, parameters.scale)


def test_a_table_gives_the_code_of_the_nearest_value():
    format = CATALOG["iq4_nl"].only_format()
    weights = np.resize(np.array([-130, -116, -115, -4.6, -4.4, 0.9, 101.1, 500]), (1, 32))
    parameters = GroupParameters(np.ones((1, 1), np.float16))
    found = encode_reference(weights.astype(np.float32), parameters, format)
    np.testing.assert_array_equal(found[0, :8], [0, 0, 1, 7, 8, 8, 15, 15])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q6_K", "MXFP4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_weights_beyond_fp16_are_refused(name, value):
    weights = np.zeros((1, 256), np.float32)
    weights[0, 9] = value
    with pytest.raises(SolveError):
        quantize_floats(weights, name)
