"""The catalog: names, exact sizes, and what it refuses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.errors import UsageError
from crumb.formats.catalog import (
    CATALOG,
    CODES,
    FORMULAS,
    GROUP_SIZES,
    INTEGERS,
    ROW,
    Format,
    ZeroKind,
    find_row,
    format_of_row,
    make_format,
    parse_format,
)

ALL_FORMATS = [
    Format(row, group_size, zero)
    for row in CATALOG.values()
    for group_size in row.group_sizes
    for zero in row.zeros
]


def test_the_catalog_lists_the_widths_the_documents_name():
    assert [row.bits for row in INTEGERS.values()] == [2, 3, 4, 5, 6, 8]
    assert [name for name in CATALOG if name not in INTEGERS] == [
        *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
        *("iq4_nl", "iq4_xs", "nf4", "fp4", "lut2", "lut3", "lut4"),
        *("super2", "super3", "super4", "mxfp4"),
    ]
    assert GROUP_SIZES == (32, 64, 128, ROW)
    assert set(FORMULAS) == set(ZeroKind)


@pytest.mark.parametrize("format", ALL_FORMATS, ids=lambda format: format.name)
def test_a_name_reads_back_as_its_format(format):
    assert parse_format(format.name) == format
    assert format_of_row(format.row, format.group_size, format.zero.value) == format
    if format.row.name in INTEGERS:
        assert make_format(format.bits, format.group_size, format.zero.value) == format
    elif format.row.name[:3] in CODES:
        made = make_format(format.bits, format.group_size, format.zero.value, format.row.name[:3])
        assert made == format
    else:
        assert format.row.only_format() == format


def test_names_are_distinct():
    assert len({format.name for format in ALL_FORMATS}) == len(ALL_FORMATS)


@pytest.mark.parametrize(
    ("name", "in_features", "bits_per_weight"),
    [
        ("int4-g32-fixed", 4096, 4 + 16 / 32),
        ("int3-g128-variable", 4096, 3 + (16 + 8) / 128),
        ("int2-g64-minimum", 4096, 2 + (16 + 16) / 64),
        ("int8-row-fixed", 4096, 8 + 16 / 4096),
        # two fp16 of each 256 weights, two 4-bit numbers of each 16; the others alike
        ("q2_k-g16-minimum", 4096, 2 + 2 * 16 / 256 + 2 * 4 / 16),
        ("q3_k-g16-fixed", 4096, 3 + 16 / 256 + 6 / 16),
        ("q4_k-g32-minimum", 4096, 4 + 2 * 16 / 256 + 2 * 6 / 32),
        ("q6_k-g16-fixed", 4096, 6 + 16 / 256 + 8 / 16),
        ("iq4_xs-g32-fixed", 4096, 4 + 16 / 256 + 6 / 32),
        ("mxfp4-g32-fixed", 4096, 4 + 16 / 32),
        # 100 weights of 3 bits are 37.5 bytes, so 38; four groups, the last of 4 weights
        ("int3-g32-fixed", 100, (8 * 38 + 4 * 16) / 100),
    ],
)
def test_bits_per_weight_are_exact(name, in_features, bits_per_weight):
    assert parse_format(name).bits_per_weight(in_features) == bits_per_weight


@pytest.mark.parametrize(
    ("group_size", "in_features", "groups"),
    [(32, 32, 1), (32, 33, 2), (128, 300, 3), (ROW, 1, 1), (ROW, 5000, 1)],
)
def test_a_ragged_last_group_is_a_smaller_group(group_size, in_features, groups):
    assert make_format(4, group_size, ZeroKind.FIXED).groups(in_features) == groups


@pytest.mark.parametrize("bits", [0, 1, 7, 9, 16, -4])
def test_a_width_that_no_row_lists_is_refused_with_those_there_are(bits):
    with pytest.raises(UsageError, match=f"one of 2, 3, 4, 5, 6, 8, found {bits}"):
        make_format(bits, 32, ZeroKind.FIXED)
    with pytest.raises(UsageError):
        find_row(bits)


@pytest.mark.parametrize("group_size", [48, 1, 16, 256, -1])
def test_a_group_size_that_no_row_lists_is_refused(group_size):
    with pytest.raises(UsageError, match=f"one of 32, 64, 128, row, found {group_size}"):
        make_format(4, group_size, ZeroKind.FIXED)


def test_an_unknown_zero_kind_is_refused():
    with pytest.raises(UsageError, match="one of fixed, variable, minimum, found floating"):
        make_format(4, 32, "floating")


def test_a_group_wider_than_the_input_is_refused_by_the_tensors_name():
    format = make_format(4, 128, ZeroKind.FIXED)
    format.check_width(128, "blocks.0.q")
    with pytest.raises(UsageError, match=r"^blocks\.0\.q: .*at most 127, found 128"):
        format.check_width(127, "blocks.0.q")
    make_format(4, ROW, ZeroKind.FIXED).check_width(1, "blocks.0.q")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "int4",
        "int4-g32",
        "int4-g32-fixed-",
        "int4-g32-fixed-more",
        "int7-g32-fixed",
        "int4-g48-fixed",
        "int4-32-fixed",
        "int4-g-fixed",
        "int4-g0-fixed",
        "int4-g032-fixed",
        "int4-g+32-fixed",
        "int4-g٣٢-fixed",
        "int4-g99999999999999999999-fixed",
        "int4-Row-fixed",
        "INT4-g32-fixed",
        "int4-g32-floating",
        " int4-g32-fixed",
    ],
)
def test_what_is_not_exactly_a_name_is_refused(name):
    with pytest.raises(UsageError):
        parse_format(name)


def name_or_refusal(text):
    """(name of the format, None) or (None, the message)."""
    try:
        return parse_format(text).name, None
    except UsageError as error:
        return None, str(error)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=100) | st.from_regex(r"int[0-9]-(g[0-9]{1,3}|row)-[a-z]{5,8}"))
def test_any_text_is_a_name_or_a_usage_error_of_one_line(text):
    name, refusal = name_or_refusal(text)
    if refusal is None:
        assert name == text
    else:
        assert "\n" not in refusal
        assert len(refusal) < 1000  # of the name 80 characters, each printed as at most 10
