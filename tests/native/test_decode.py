"""Native decoding against its slow twin, bit for bit: widths, groups, zero kinds, ragged ends.

Decoding has one implementation for all instruction sets, so CRUMB_ISA plays no part here.
"""

from dataclasses import replace

import numpy as np
import pytest
from random_matrices import first_format, is_ragged, random_matrix

from crumb.formats.catalog import (
    CATALOG,
    GROUP_SIZES,
    INTEGERS,
    ROW,
    CodeRow,
    Format,
    ZeroKind,
    make_format,
)
from crumb.formats.grid import GroupParameters, decode_reference, make_parameters
from crumb.kernels import threads as threads_module
from crumb.kernels.decode import decode, decode_packed_reference
from crumb.kernels.tile import pack_tensor


def random_tensor(format, rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    shape = (rows, format.groups(columns))
    codes = rng.integers(0, 1 << format.bits, (rows, columns)).astype(np.uint8)
    scale = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-7, 4, shape)).astype(np.float32)
    scale[rng.random(shape) < 0.1] = 0
    offset = rng.integers(0, 1 << format.bits, shape).astype(np.float32)
    if format.zero is ZeroKind.MINIMUM:
        offset = (rng.standard_normal(shape) * 100).astype(np.float32)
    return codes, make_parameters(format, scale, offset)


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("bits", [row.bits for row in INTEGERS.values()])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("zero", list(ZeroKind))
def test_decoding_gives_the_references_bits(bits, group_size, zero):
    format = make_format(bits, group_size, zero)
    for rows, beyond in [(1, 0), (2, 1), (15, 7), (16, 31), (17, 33), (33, 129)]:
        columns = max(group_size, 1) + beyond
        codes, parameters = random_tensor(format, rows, columns, seed=rows)
        tensor = pack_tensor(codes, parameters, format)
        found = decode(tensor)
        assert_same_bits(found, decode_packed_reference(tensor))
        assert_same_bits(found, decode_reference(codes, parameters, format))


@pytest.mark.parametrize("row", [row for row in CATALOG if row not in INTEGERS])
@pytest.mark.parametrize("rows", [1, 15, 33])
def test_super_blocks_and_tables_decode_to_the_references_bits(row, rows):
    """Any bytes: every sub-scale and sub-minimum, and fp16 scales that are not finite."""
    format = first_format(row)
    columns = 750 if is_ragged(format) else 768
    codes, parameters = random_matrix(format, rows, columns, seed=rows)
    tensor = pack_tensor(codes, parameters, format)
    found = decode(tensor)
    assert_same_bits(found, decode_packed_reference(tensor))
    assert_same_bits(found, decode_reference(codes, parameters, format))
    noise = np.random.default_rng(rows).integers(0, 256, tensor.tiles.shape).astype(np.uint8)
    noisy = replace(tensor, tiles=noise)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = decode_packed_reference(noisy)
    finite = np.isfinite(expected)
    assert_same_bits(decode(noisy)[finite], expected[finite])
    assert finite.any()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_thread_count_does_not_change_the_bits(threads, monkeypatch):
    format = make_format(3, 32, ZeroKind.VARIABLE)
    tensor = pack_tensor(*random_tensor(format, 70, 75), format)
    monkeypatch.setattr(threads_module, "processors", lambda: threads)
    assert_same_bits(decode(tensor), decode_packed_reference(tensor))


def test_a_tensor_without_rows_decodes_to_none():
    format = make_format(4, ROW, ZeroKind.MINIMUM)
    tensor = pack_tensor(*random_tensor(format, 0, 12), format)
    assert decode(tensor).shape == (0, 12)


@pytest.mark.parametrize("zero", list(ZeroKind))
def test_parameters_in_another_memory_order_decode_alike(zero):
    format = make_format(4, 32, zero)
    codes, parameters = random_tensor(format, 5, 96)
    turned = {
        name: None if array is None else np.asfortranarray(array)
        for name, array in vars(parameters).items()
    }
    tensor = pack_tensor(codes, GroupParameters(**turned), format)
    assert_same_bits(decode(tensor), decode_reference(codes, parameters, format))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_a_table_gives_each_code_its_level(group_size):
    levels = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
    format = Format(CodeRow("levels4", 4, table=levels), group_size, ZeroKind.FIXED)
    codes, parameters = random_tensor(format, 17, 160)
    tensor = pack_tensor(codes, parameters, format)
    found = decode(tensor)
    assert_same_bits(found, decode_packed_reference(tensor))
    scale = np.repeat(parameters.scale, format.group_width(160), axis=1)[:, :160]
    by_hand = np.array(levels, np.float32)[codes] * scale.astype(np.float32)
    np.testing.assert_array_equal(found, by_hand)


def test_every_scale_and_minimum_of_fp16_decodes_as_the_reference_does():
    """All 63488 finite values of fp16, as scales and the other way round as minima."""
    format = make_format(2, 32, ZeroKind.MINIMUM)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 2)
    assert finite.size == 63488
    codes = np.tile(np.arange(4, dtype=np.uint8), (len(finite), 16))
    tensor = pack_tensor(codes, GroupParameters(finite, minimum=finite[::-1].copy()), format)
    assert_same_bits(decode(tensor), decode_packed_reference(tensor))


@pytest.mark.parametrize("half", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_not_finite_stays_so(half):
    format = make_format(4, 32, ZeroKind.FIXED)
    scale = np.full((1, 1), half, np.float16)
    tensor = pack_tensor(np.full((1, 32), 9, np.uint8), GroupParameters(scale), format)
    np.testing.assert_array_equal(decode(tensor), np.full((1, 32), half, np.float32))
