"""The tile layout: bytes worked out by hand, then every width, group, zero kind and ragged shape.

In: codes and parameters. Out: tiles, and the same codes and parameters again.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_matrices import assert_same_matrix, first_format, is_ragged, random_matrix

from crumb.errors import UsageError
from crumb.formats.catalog import CATALOG, GROUP_SIZES, INTEGERS, ROW, ZeroKind, make_format
from crumb.formats.grid import GroupParameters
from crumb.formats.layouts.tile import (
    PLACES,
    SLICES,
    block_bytes,
    blocks,
    diagram,
    pack_reference,
    tile_bytes,
    tile_count,
    tiles_of_rows,
    unpack_reference,
)

WIDTHS = [row.bits for row in INTEGERS.values()]
BITS = pytest.mark.parametrize("bits", WIDTHS)
KINDS = pytest.mark.parametrize("zero", list(ZeroKind))
CONTAINER_PAGE = Path(__file__).parents[2] / "docs" / "container.md"

GOLDEN = {
    # eight codes, one a slice; then the byte that they share in each vector
    # 3 + 1*4 + 2*16 + 0*64 = 0x27; 1 + 3*4 + 2*16 + 3*64 = 0xed
    2: ([3, 1, 2, 0, 1, 3, 2, 3], "27 ed"),
    # 1 + 2*8 + 3*64: code 6 = 7 has its low two bits here; 3 + 4*8 + 1*64: those of code 7 = 5
    # 5 + 6*8 + 1*64 + 1*128: the high bits of both
    3: ([1, 2, 3, 4, 5, 6, 7, 5], "d1 63 f5"),
    # low digit the even slice, high digit the odd one
    4: ([1, 2, 3, 4, 5, 6, 15, 8], "21 43 65 8f"),
    # code 5 = 27 = 3 + 3*8: 1 + 3*32 and 4 + 3*32; code 6 = 14 = 6 + 1*8: 2 + 6*32 and 31 + 1*32
    # code 7 = 21 = 5 + 0*8 + 1*16: 3 + 5*32, nothing in bit 7 of vector 3, bit 7 of vector 4
    5: ([1, 2, 3, 4, 31, 27, 14, 21], "61 c2 a3 64 bf"),
    # code 3 = 27 = 3 + 2*4 + 1*16: 1 + 3*64, 2 + 2*64, 63 + 1*64
    # code 7 = 36 = 0 + 1*4 + 2*16: 4 + 0*64, 5 + 1*64, 33 + 2*64
    6: ([1, 2, 63, 27, 4, 5, 33, 36], "c1 82 7f 04 45 a1"),
    8: ([0, 1, 127, 128, 255, 7, 90, 16], "00 01 7f 80 ff 07 5a 10"),
}


@BITS
@KINDS
def test_bytes_are_as_worked_out_by_hand(bits, zero):
    """Two rows of 32 inputs: the second row has one code in each slice, at its third input."""
    given_codes, vectors = GOLDEN[bits]
    codes = np.zeros((2, 32), np.uint8)
    codes[1, 2::4] = given_codes
    column = np.array([[0.0], [1.5]], np.float16)
    parameters = GroupParameters(
        column,
        np.array([[0], [5]], np.uint8) if zero is ZeroKind.VARIABLE else None,
        -2 * column if zero is ZeroKind.MINIMUM else None,
    )
    tiles = pack_reference(codes, parameters, make_format(bits, 32, zero))
    scales = "00 00 00 3e" + 28 * " 00"  # 1.5 in fp16 is 0x3e00
    offsets = {
        ZeroKind.FIXED: "",
        ZeroKind.VARIABLE: "00 05" + 14 * " 00",
        ZeroKind.MINIMUM: "00 80 00 c2" + 28 * " 00",  # -0 and -3
    }
    expected = [*bytes.fromhex(scales + offsets[zero])]
    for byte in bytes.fromhex(vectors):
        expected += [*bytes(4 * 1 + 2), byte, *bytes(57)]
    assert tiles.shape == (1, len(expected))
    assert tiles[0].tolist() == expected


SUPER_HEADERS = {
    # What the second row's byte is for each group, one field after the other
    # digits: group + 16 * (15 - group)
    "q2_k": "f0 e1 d2 c3 b4 a5 96 87 78 69 5a 4b 3c 2d 1e 0f",
    # group - 8, signed
    "q3_k": "f8 f9 fa fb fc fd fe ff 00 01 02 03 04 05 06 07",
    "q6_k": "f8 f9 fa fb fc fd fe ff 00 01 02 03 04 05 06 07",
    "iq4_xs": "f8 f9 fa fb fc fd fe ff",
    # group - 8, the next group's in the high digit
    **dict.fromkeys(("super2", "super3"), "98 ba dc fe"),
    # likewise of two groups and two, then the two bits above each of the four
    "super4": "98 ba ff dc fe ff",
    # group, then 15 - group
    "q4_k": "00 01 02 03 04 05 06 07 0f 0e 0d 0c 0b 0a 09 08",
    "q5_k": "00 01 02 03 04 05 06 07 0f 0e 0d 0c 0b 0a 09 08",
}


@pytest.mark.parametrize("name", SUPER_HEADERS)
def test_bytes_of_a_super_block_are_as_worked_out_by_hand(name):
    """Two rows of 256 inputs: the second has one code in each slice of its sixth chunk."""
    format = first_format(name)
    given_codes, vectors = GOLDEN[format.bits]
    codes = np.zeros((2, 256), np.uint8)
    codes[1, 5 * 32 + 2 : 6 * 32 : 4] = given_codes
    has_minimum = format.zero is ZeroKind.MINIMUM
    column = np.array([[0.0], [1.5]], np.float16)
    groups = np.arange(256 // format.group_size)
    number = groups if has_minimum else groups - 8
    rows = np.array([[0], [1]])
    parameters = GroupParameters(
        column,
        minimum=2 * column if has_minimum else None,
        sub_scale=(rows * number).astype(np.int8),
        sub_minimum=(rows * (15 - groups)).astype(np.uint8) if has_minimum else None,
    )
    tiles = pack_reference(codes, parameters, format)
    expected = [*bytes.fromhex("00 00 00 3e" + 28 * " 00")]  # 1.5 in fp16 is 0x3e00, 3 is 0x4200
    expected += [*bytes.fromhex("00 00 00 42" + 28 * " 00")] if has_minimum else []
    for byte in bytes.fromhex(SUPER_HEADERS[name]):
        expected += [0, byte, *bytes(14)]
    expected += bytes(5 * 64 * format.bits)
    for byte in bytes.fromhex(vectors):
        expected += [*bytes(4 * 1 + 2), byte, *bytes(57)]
    expected += bytes(2 * 64 * format.bits)
    assert tiles.tolist() == [expected]
    assert_same_matrix(unpack_reference(tiles, format, 2, 256), (codes, parameters))


WHOLE_BLOCK = 32 + 4 * 16 + 8 * 3 * 64
"""Bytes of a super-block of super3: scales, sub-scales of 8 groups, 8 chunks."""


@pytest.mark.parametrize(
    ("columns", "begin", "sub_scales", "chunks"),
    [(32, 0, "0f", 1), (64, 0, "ff", 2), (96, 0, "ff 0f", 3), (257, WHOLE_BLOCK, "0f", 1)],
)
def test_the_header_of_a_smaller_super_block_ends_behind_its_groups(
    columns, begin, sub_scales, chunks
):
    format = CATALOG["super3"].only_format()
    sub_scale = np.zeros((1, format.whole_groups(columns)), np.int8)
    sub_scale[:, : format.groups(columns)] = -1
    scale = np.ones((1, format.blocks(columns)), np.float16)
    parameters = GroupParameters(scale, sub_scale=sub_scale)
    codes = np.zeros((1, columns), np.uint8)
    tiles = pack_reference(codes, parameters, format)
    expected = [0x00, 0x3C, *bytes(30)]  # 1 in fp16
    for byte in bytes.fromhex(sub_scales):
        expected += [byte, *bytes(15)]
    assert tiles[0, begin:].tolist() == expected + [0] * (chunks * 3 * 64)
    assert_same_matrix(unpack_reference(tiles, format, 1, columns), (codes, parameters))


@pytest.mark.parametrize("name", [name for name in CATALOG if name not in INTEGERS])
@settings(deadline=None, max_examples=8)
@given(
    rows=st.sampled_from([1, 15, 16, 17, 33]),
    super_blocks=st.integers(1, 3),
    more=st.integers(0, 255),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpacking_undoes_packing_of_super_blocks_and_tables(name, rows, super_blocks, more, seed):
    format = first_format(name)
    in_features = 256 * super_blocks + (more if is_ragged(format) else 0)
    matrix = random_matrix(format, rows, in_features, seed)
    tiles = pack_reference(*matrix, format)
    assert tiles.shape == (tile_count(rows), tile_bytes(format, in_features))
    assert_same_matrix(unpack_reference(tiles, format, rows, in_features), matrix)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        # code, fp16 of each 256 weights, byte of each group
        ("q2_k", 2 + 2 * 16 / 256 + 8 / 16),
        ("q3_k", 3 + 16 / 256 + 8 / 16),
        ("q4_k", 4 + 2 * 16 / 256 + 2 * 8 / 32),
        ("q5_k", 5 + 2 * 16 / 256 + 2 * 8 / 32),
        ("q6_k", 6 + 16 / 256 + 8 / 16),
        ("iq4_nl", 4 + 16 / 32),
        ("iq4_xs", 4 + 16 / 256 + 8 / 32),
        ("mxfp4", 4 + 16 / 32),
    ],
)
def test_a_whole_tile_takes_the_bits_worked_out_by_hand(name, bits):
    assert 8 * tile_bytes(CATALOG[name].only_format(), 4096) == 16 * 4096 * bits


@BITS
@KINDS
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@settings(deadline=None, max_examples=12)
@given(
    rows=st.sampled_from([1, 15, 16, 17, 33]),
    in_features=st.sampled_from([4, 31, 32, 33, 60, 100, 128, 130, 160]),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpacking_undoes_packing(bits, zero, group_size, rows, in_features, seed):
    in_features += max(group_size - 4, 0)
    format = make_format(bits, group_size, zero)
    matrix = random_matrix(format, rows, in_features, seed)
    tiles = pack_reference(*matrix, format)
    assert tiles.shape == (tile_count(rows), tile_bytes(format, in_features))
    assert_same_matrix(unpack_reference(tiles, format, rows, in_features), matrix)


@BITS
def test_every_bit_of_a_chunk_belongs_to_one_bit_of_one_code(bits):
    places = [place for slices in PLACES[bits] for place in slices]
    stored = [
        (place.vector, bit)
        for place in places
        for bit in range(place.low_in_vector, place.low_in_vector + place.width)
    ]
    assert sorted(stored) == [(vector, bit) for vector in range(bits) for bit in range(8)]
    assert len(PLACES[bits]) == SLICES
    for pieces in PLACES[bits]:
        held = [
            bit
            for place in pieces
            for bit in range(place.low_in_code, place.low_in_code + place.width)
        ]
        assert held == list(range(bits)), "low bits first, in vectors of rising number"
        vectors = [place.vector for place in pieces]
        assert vectors == sorted(set(vectors))


@BITS
def test_the_diagram_shows_the_slice_of_each_bit(bits):
    drawn = diagram(bits).split()
    format = make_format(bits, 32, ZeroKind.FIXED)
    one = GroupParameters(np.zeros((1, 1), np.float16))
    for number in range(SLICES):
        codes = np.zeros((1, 32), np.uint8)
        codes[0, 4 * number] = format.row.largest_code
        vectors = pack_reference(codes, one, format)[0, 32:].reshape(bits, 64)
        owned = [f"{byte:08b}" for byte in vectors[:, 0]]
        shown = ["".join("01"[owner == str(number)] for owner in byte) for byte in drawn]
        assert owned == shown
        assert not vectors[:, 1:].any()


def test_the_diagram_of_3_bits_is_as_drawn_by_hand():
    assert diagram(3) == "66111000 77333222 76555444"


@pytest.mark.parametrize("row", INTEGERS.values(), ids=INTEGERS)
def test_the_page_on_the_container_has_the_diagram_of_every_width(row):
    assert f"{row.name}  {diagram(row.bits)}\n" in CONTAINER_PAGE.read_text()


@KINDS
def test_each_row_and_input_has_bytes_of_its_own(zero):
    """Row r, input 4s + j: byte 4r + j of its slice's vectors, in the tile and block it lies in."""
    format = make_format(8, 64, zero)
    rows, in_features = 37, 150
    _, empty = random_matrix(format, rows, in_features)
    header = {ZeroKind.FIXED: 32, ZeroKind.VARIABLE: 48, ZeroKind.MINIMUM: 64}[zero]
    nothing = pack_reference(np.zeros((rows, in_features), np.uint8), empty, format)
    for row, column in [(0, 0), (15, 31), (16, 32), (20, 63), (31, 64), (36, 149)]:
        codes = np.zeros((rows, in_features), np.uint8)
        codes[row, column] = 255
        changed = np.argwhere(pack_reference(codes, empty, format) != nothing)
        group, in_group = divmod(column, 64)
        byte = group * (header + 64 * 64 // 4) + header
        byte += 64 * (in_group // 4) + 4 * (row % 16) + in_group % 4
        assert changed.tolist() == [[row // 16, byte]]


@BITS
@KINDS
def test_padding_is_zero_and_unpacking_ignores_it(bits, zero):
    format = make_format(bits, 32, zero)
    codes, parameters = random_matrix(format, 19, 75, seed=bits)
    tiles = pack_reference(codes, parameters, format)
    padded = np.zeros((32, 96), np.uint8)
    padded[:19, :75] = codes
    fields = {
        name: np.concatenate([array, np.zeros((13, 3), array.dtype)])
        for name, array in vars(parameters).items()
        if array is not None
    }
    np.testing.assert_array_equal(tiles, pack_reference(padded, GroupParameters(**fields), format))
    padded[19:], padded[:, 75:] = format.row.largest_code, 1
    for array in fields.values():
        array[19:] = 3
    noisy = pack_reference(padded, GroupParameters(**fields), format)
    assert (noisy != tiles).any()
    assert_same_matrix(unpack_reference(noisy, format, 19, 75), (codes, parameters))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ((3, 128, ZeroKind.VARIABLE), 32 * (32 + 16 + 4 * 3 * 64)),
        ((4, 32, ZeroKind.FIXED), 128 * (32 + 4 * 64)),
        ((2, 64, ZeroKind.MINIMUM), 64 * (64 + 2 * 2 * 64)),
        ((8, ROW, ZeroKind.FIXED), 32 + 128 * 8 * 64),
    ],
)
def test_the_size_of_a_tile_of_4096_inputs_is_as_worked_out_by_hand(name, size):
    assert tile_bytes(make_format(*name), 4096) == size


def test_a_ragged_last_group_is_a_smaller_block():
    format = make_format(5, 128, ZeroKind.VARIABLE)
    assert [block_bytes(format, block.inputs) for block in blocks(format, 300)] == [
        48 + 4 * 320,
        48 + 4 * 320,
        48 + 2 * 320,  # 44 inputs are 2 chunks
    ]
    assert tile_bytes(format, 300) == 3 * 48 + 10 * 320


def test_the_tiles_of_some_rows_are_those_that_hold_them():
    assert [tiles_of_rows(*rows) for rows in ((0, 16), (15, 17), (16, 17), (40, 40))] == [
        slice(0, 1),
        slice(0, 2),
        slice(1, 2),
        slice(2, 3),
    ]


@pytest.mark.parametrize("bits", [bits for bits in WIDTHS if bits < 8])
def test_a_code_that_does_not_fit_is_refused(bits):
    codes = np.array([[0, 1 << bits]], np.uint8)
    parameters = GroupParameters(np.ones((1, 1), np.float16))
    with pytest.raises(UsageError, match=f"expected at most {(1 << bits) - 1}, found {1 << bits}"):
        pack_reference(codes, parameters, make_format(bits, ROW, ZeroKind.FIXED))
