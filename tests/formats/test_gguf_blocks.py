"""GGUF's blocks: bytes worked out by hand for every type, both directions, and what is refused.

In: a few bytes of a block whose others are equal, and random blocks. Out: weights element by
element, and the same bytes again.
"""

import numpy as np
import pytest
from gguf_matrices import QUANTIZED, random_blocks, random_of_type
from hypothesis import given, settings
from hypothesis import strategies as st
from random_matrices import assert_same_matrix

from crumb.errors import CheckpointError, UsageError
from crumb.formats.catalog import CATALOG
from crumb.formats.grid import GroupParameters, decode_reference
from crumb.formats.layouts.gguf_blocks import (
    decode_blocks,
    decode_floats,
    encode_blocks,
    encode_floats,
    fits,
)
from crumb.formats.layouts.gguf_types import GGUF_TYPES, UNSUPPORTED, find_type, type_of_id

HALF, QUARTER, MINUS_ONE = b"\x00\x38", b"\x00\x34", b"\x00\xbc"  # fp16 0.5, 0.25, -1

SUB_BLOCKS = {4: 0x43, 5: 0x02, 8: 0x82, 12: 0x51, 7: 0xC1, 15: 0xF2}
"""Q4_K and Q5_K, sub_scale and sub_minimum: sub-block 0 has 3 and 2, 1 has 2 and 0, 3 has 1 and 0,
4 has 1 + 16 and 5 + 32, 7 has 2 + 48 and 15, the others 0 and 0."""

# Type: (byte that fills the block, {place: byte or bytes}, {element or elements: weight})
GOLDEN = {
    "F32": (0, {0: b"\x00\x00\x80\x3f"}, {0: 1.0}),
    "F16": (0, {0: HALF}, {0: 0.5}),
    "BF16": (0, {0: b"\x80\xbf"}, {0: -1.0}),
    "Q4_0": (
        0x88,
        {0: HALF, 2: 0x9F, 17: 0x01},
        {0: 0.5 * 7, 16: 0.5 * 1, 15: 0.5 * -7, 31: 0.5 * -8},
    ),
    "Q4_1": (
        0,
        {0: HALF, 2: MINUS_ONE, 4: 0xF3, 19: 0x10},
        {range(32): -1.0, 0: 0.5 * 3 - 1, 16: 0.5 * 15 - 1, 31: 0.5 * 1 - 1},
    ),
    "Q5_0": (
        0,
        {0: HALF, 2: b"\xfe\xfd\xff\x7f", 6: 0x5A, 21: 0x0F},
        {0: 0.5 * (10 - 16), 16: 0.5 * 5, 15: 0.5 * 15, 31: 0.5 * -16, 9: 0.5 * -16},
    ),
    "Q5_1": (
        0,
        {0: HALF, 2: MINUS_ONE, 4: b"\x01\x02\x00\x80", 8: 0x32, 23: 0xF0},
        {range(32): -1.0, 0: 0.5 * 18 - 1, 16: 0.5 * 3 - 1, 31: 0.5 * 31 - 1, 9: 0.5 * 16 - 1},
    ),
    "Q8_0": (0, {0: HALF, 2: 0x80, 3: 0xFF, 33: 0x7F}, {0: -64.0, 1: -0.5, 31: 63.5}),
    "Q2_0": (
        0x55,
        {0: HALF, 2: 0b11_10_01_00, 17: 0b00_01_01_01},
        {0: -0.5, 1: 0.0, 2: 0.5, 3: 1.0, 63: -0.5},
    ),
    "Q2_K": (
        0,
        {80: HALF, 82: QUARTER, 0: 0x31, 8: 0x11, 2: 0x02, 15: 0x02}
        | {16: 0b11_10_01_00, 17: 0x03, 48: 0x02, 79: 0b10_00_00_00},
        {range(16): -0.25 * 3, 1: 0.5 * 3 - 0.75, 32: 0.5 * 2 * 1, 255: 0.5 * 2 * 2}
        | {range(128, 144): -0.25, 128: 0.5 * 2 - 0.25},
    ),
    "Q3_K": (
        0,
        {range(32): 0xFF, 0: 0xFE, 1: 0xFD, 108: HALF, 96: 0x21, 104: 0x22, 103: 0x30, 107: 0x80}
        | {32: 0x02, 64: 0x01, 95: 0xC0, 48: 0x01},
        {0: 0.5 * 1 * (2 - 4), 128: 0.5 * 2 * 1, 255: 0.5 * 3 * 3, 16: 0.5 * -32 * 1}
        | {33: 0.5 * -32 * -4},
    ),
    "Q4_K": (
        0,
        {0: HALF, 2: QUARTER, **SUB_BLOCKS, 16: 0x2A, 48: 0x70, 80: 0x01, 143: 0x40},
        {range(32): -0.25 * 2, 0: 0.5 * 3 * 10 - 0.5, 32: 0.5 * 2 * 2, 96: 0.5 * 1 * 7}
        | {range(128, 160): -0.25 * 37, 128: 0.5 * 17 - 9.25}
        | {range(224, 256): -0.25 * 15, 255: 0.5 * 50 * 4 - 3.75},
    ),
    "Q5_K": (
        0,
        {0: HALF, 2: QUARTER, **SUB_BLOCKS, 16: 0x01, 17: 0x08, 47: 0x80}
        | {48: 0x2A, 80: 0x70, 112: 0x01, 175: 0x40},
        {
            range(32): -0.25 * 2,
            0: 0.5 * 3 * 26 - 0.5,
            32: 0.5 * 2 * 2,
            96: 0.5 * 1 * 7,
            97: 0.5 * 1 * 16,
        }
        | {range(128, 160): -0.25 * 37, 128: 0.5 * 17 - 9.25}
        | {range(224, 256): -0.25 * 15, 255: 0.5 * 50 * 20 - 3.75},
    ),
    "Q6_K": (
        0,
        {range(128, 192): 0xAA, 208: HALF, 192: 0x02, 194: 0x01, 196: 0x01, 200: 0x80, 207: 0xFF}
        | {0: 0x3C, 128: 0xAB, 129: 0xAE, 64: 0x01, 127: 0x50, 191: 0x2A},
        {0: 0.5 * 2 * (60 - 32), 64: 0.5 * (35 - 32), 128: 0.5 * -128, 255: -0.5 * (5 - 32)}
        | {33: 0.5 * 1 * (48 - 32)},
    ),
    "IQ4_NL": (0x88, {0: HALF, 2: 0xF0}, {range(32): 0.5, 0: 0.5 * -127, 16: 0.5 * 113}),
    "IQ4_XS": (
        0x88,
        {0: HALF, 2: b"\x82\x80", 4: b"\x21\x40\x00\x30", 8: 0xF0, 135: 0x98},
        {range(256): 0.5 * -32, range(32): 0.5, 0: 0.5 * -127, 16: 0.5 * 113}
        | {
            range(32, 64): 0.5 * -30,
            range(96, 128): 0.5 * 4,
            range(224, 256): 0.5 * 3,
            255: 0.5 * 3 * 13,
        },
    ),
    "MXFP4": (0, {0: 127, 1: 0xF7, 16: 0x91}, {0: 6.0, 16: -6.0, 15: 0.5, 31: -0.5}),
}

SCALES = st.integers(0, 2**32 - 1)


def golden(name):
    """A block as a row of bytes, and its weights."""
    row = GGUF_TYPES[name]
    fill, places, values = GOLDEN[name]
    raw = np.full((1, row.block_bytes), fill, np.uint8)
    for place, value in places.items():
        if isinstance(value, bytes):
            raw[0, place : place + len(value)] = np.frombuffer(value, np.uint8)
        else:
            raw[0, place] = value
    weights = np.zeros((1, row.block_weights), np.float32)
    for element, value in values.items():
        weights[0, element] = value
    return raw, weights


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_bytes_worked_out_by_hand_decode_to_their_weights(name):
    raw, weights = golden(name)
    found = decode_floats(name, raw, weights.shape[1])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weights)


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_weights_worked_out_by_hand_encode_to_their_bytes(name):
    raw, weights = golden(name)
    if GGUF_TYPES[name].format is None:
        again = encode_floats(name, weights)
    else:
        again = encode_blocks(name, *decode_blocks(name, raw, weights.shape[1]))
    assert again.tobytes() == raw.tobytes()


@pytest.mark.parametrize("name", QUANTIZED)
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 3), blocks=st.integers(1, 3), seed=SCALES)
def test_encoding_restores_every_bit_of_a_block(name, rows, blocks, seed):
    row = GGUF_TYPES[name]
    in_features = blocks * row.block_weights
    raw = random_blocks(row, rows, in_features, seed)
    codes, parameters = decode_blocks(name, raw, in_features)
    assert codes.shape == (rows, in_features)
    again = encode_blocks(name, codes, parameters)
    assert again.shape == (rows, row.row_bytes(in_features))
    assert again.tobytes() == raw.tobytes()
    assert row.format is not None
    np.testing.assert_array_equal(
        decode_floats(name, raw, in_features), decode_reference(codes, parameters, row.format)
    )


@pytest.mark.parametrize("name", QUANTIZED)
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 3), blocks=st.integers(1, 3), seed=SCALES)
def test_decoding_restores_every_code_and_parameter(name, rows, blocks, seed):
    row = GGUF_TYPES[name]
    matrix = random_of_type(row, rows, blocks * row.block_weights, seed)
    raw = encode_blocks(name, *matrix)
    assert_same_matrix(decode_blocks(name, raw, matrix[0].shape[1]), matrix)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_type_costs_what_its_format_says_where_both_store_the_same(name):
    row = GGUF_TYPES[name]
    assert row.format is not None
    stored = 8 * row.row_bytes(256)
    extra = -8 * 256 // 32 if name == "MXFP4" else 0  # an exponent instead of fp16
    assert stored == row.format.row_bits(256) + extra
    assert row.bits_per_weight == stored / 256


def test_every_row_of_the_catalog_that_is_named_after_a_type_has_it():
    only = [row for row in CATALOG.values() if len(row.group_sizes) == 1 and not row.learned]
    foreign = {row.name.upper() for row in only}
    assert len(foreign) == 8
    assert foreign <= set(GGUF_TYPES)
    for row in GGUF_TYPES.values():
        assert type_of_id(row.id) is row
        assert row.id not in UNSUPPORTED


def test_a_type_nobody_reads_is_refused_by_its_name():
    with pytest.raises(CheckpointError, match=r"token_embd: .* found type 40, NVFP4\)"):
        type_of_id(40, "token_embd")
    with pytest.raises(CheckpointError, match="type 1234, which has no name"):
        type_of_id(1234)
    with pytest.raises(UsageError, match=r"expected one of F32, .* found Q9"):
        find_type("Q9")


@pytest.mark.parametrize("name", ["Q4_0", "Q2_0", "Q4_K"])
def test_inputs_in_no_whole_blocks_are_refused(name):
    width = GGUF_TYPES[name].block_weights
    codes = np.zeros((1, width + 16), np.uint8)
    refusal = rf"{name} needs .* divisible by {width}, found {width + 16}"
    with pytest.raises(UsageError, match=refusal):
        encode_blocks(name, codes, GroupParameters(np.ones((1, 1), np.float16)))


@pytest.mark.parametrize(("name", "code"), [("Q4_0", 16), ("Q2_0", 4), ("Q3_K", 8), ("Q6_K", 64)])
def test_a_code_over_the_width_of_the_type_is_refused(name, code):
    codes, parameters = random_of_type(GGUF_TYPES[name], 1, 256)
    codes[0, 7] = code
    with pytest.raises(UsageError, match=f"found {code}"):
        encode_blocks(name, codes, parameters)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Q2_K", "sub_scale", 16),
        ("Q2_K", "sub_scale", -1),
        ("Q2_K", "sub_minimum", 16),
        ("Q3_K", "sub_scale", 32),
        ("Q4_K", "sub_scale", 64),
        ("Q5_K", "sub_minimum", 64),
        ("IQ4_XS", "sub_scale", -33),
    ],
)
def test_a_whole_number_over_the_digits_of_the_type_is_refused(name, field, value):
    codes, parameters = random_of_type(GGUF_TYPES[name], 2, 256)
    getattr(parameters, field)[1, 3] = value
    with pytest.raises(UsageError, match=rf"{name} cannot hold a {field} .*{value}"):
        encode_blocks(name, codes, parameters)


@pytest.mark.parametrize("scale", [0.75, 0.0, -0.5, np.inf, np.nan])
def test_mxfp4_holds_powers_of_two_only(scale):
    codes = np.zeros((1, 64), np.uint8)
    parameters = GroupParameters(np.array([[0.5, scale]], np.float16))
    with pytest.raises(UsageError, match="expected powers of two"):
        encode_blocks("MXFP4", codes, parameters)


@pytest.mark.parametrize(("exponent", "within"), [(103, 0), (104, 1), (143, 1), (144, 0), (0, 0)])
def test_powers_of_two_beyond_fp16_are_read_as_floats_only(exponent, within):
    raw = np.full((2, 17), 0x11, np.uint8)  # every weight is the power itself
    raw[:, 0] = 127
    raw[1, 0] = exponent
    assert fits("MXFP4", raw) == bool(within)
    weights = decode_floats("MXFP4", raw, 32)
    np.testing.assert_array_equal(weights[0], np.full(32, 0.5, np.float32))
    np.testing.assert_array_equal(weights[1], np.full(32, 2.0 ** (exponent - 128), np.float32))
    if not within:
        with pytest.raises(CheckpointError, match="a scale of MXFP4 is beyond fp16"):
            decode_blocks("MXFP4", raw, 32)


def test_both_zeros_of_mxfp4_keep_their_codes():
    raw = np.full((1, 17), 0x80, np.uint8)
    codes, parameters = decode_blocks("MXFP4", raw, 32)
    np.testing.assert_array_equal(codes, [[0] * 16 + [8] * 16])
    assert encode_blocks("MXFP4", codes, parameters).tobytes() == raw.tobytes()
    assert not decode_floats("MXFP4", raw, 32).any()


def test_floats_have_no_codes_and_fit_none():
    assert not fits("F16", np.zeros((1, 2), np.uint8))


def test_floats_are_rounded_to_nearest_and_refused_where_they_overflow():
    weights = np.array([[1 + 2**-9, -1 - 3 * 2**-9, 70000.0]], np.float32)
    halves = encode_floats("BF16", weights[:, :2])
    np.testing.assert_array_equal(decode_floats("BF16", halves, 2), [[1, -1 - 2**-7]])
    with pytest.raises(UsageError, match=r"does not fit F16 \(found 70000"):
        encode_floats("F16", weights)
