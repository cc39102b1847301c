"""Native packing of tiles against its slow twin, byte for byte, over every width and ragged shape.

Packing has one implementation for all instruction sets, so CRUMB_ISA plays no part here.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_matrices import assert_same_matrix, first_format, is_ragged, random_matrix

from crumb.errors import UsageError
from crumb.formats.catalog import CATALOG, GROUP_SIZES, INTEGERS, ROW, ZeroKind, make_format
from crumb.formats.grid import GroupParameters
from crumb.formats.layouts.tile import pack_reference, unpack_reference
from crumb.kernels import threads as threads_module
from crumb.kernels.tile import pack, pack_tensor, unpack, unpack_tensor

BITS = pytest.mark.parametrize("bits", [row.bits for row in INTEGERS.values()])
KINDS = pytest.mark.parametrize("zero", list(ZeroKind))


@BITS
@KINDS
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@settings(deadline=None, max_examples=12)
@given(
    rows=st.sampled_from([1, 15, 16, 17, 33]),
    columns=st.sampled_from([4, 31, 32, 33, 60, 100, 128, 130, 160]),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_gives_the_references_bytes(bits, zero, group_size, rows, columns, seed):
    columns += max(group_size - 4, 0)
    format = make_format(bits, group_size, zero)
    codes, parameters = random_matrix(format, rows, columns, seed)
    tiles = pack(codes, parameters, format)
    np.testing.assert_array_equal(tiles, pack_reference(codes, parameters, format))
    assert_same_matrix(unpack(tiles, format, rows, columns), (codes, parameters))


@BITS
@KINDS
def test_unpacking_reads_any_bytes_as_the_reference_does(bits, zero):
    format = make_format(bits, 64, zero)
    shape = pack_reference(*random_matrix(format, 37, 150), format).shape
    tiles = np.random.default_rng(bits).integers(0, 256, shape).astype(np.uint8)
    assert_same_matrix(unpack(tiles, format, 37, 150), unpack_reference(tiles, format, 37, 150))


@pytest.mark.parametrize("row", [row for row in CATALOG if row not in INTEGERS])
@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize("columns", [256, 768, 300, 577])
def test_super_blocks_and_tables_are_packed_as_the_reference_packs_them(row, rows, columns):
    format = first_format(row)
    columns = columns if is_ragged(format) else columns // 256 * 256
    matrix = random_matrix(format, rows, columns, seed=rows)
    tiles = pack(*matrix, format)
    np.testing.assert_array_equal(tiles, pack_reference(*matrix, format))
    assert_same_matrix(unpack(tiles, format, rows, columns), matrix)
    noise = np.random.default_rng(rows).integers(0, 256, tiles.shape).astype(np.uint8)
    assert_same_matrix(
        unpack(noise, format, rows, columns), unpack_reference(noise, format, rows, columns)
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_thread_count_does_not_change_the_bytes(threads, monkeypatch):
    format = make_format(3, 32, ZeroKind.VARIABLE)
    matrix = random_matrix(format, 70, 75)
    monkeypatch.setattr(threads_module, "processors", lambda: threads)
    tensor = pack_tensor(*matrix, format)
    np.testing.assert_array_equal(tensor.tiles, pack_reference(*matrix, format))
    assert_same_matrix(unpack_tensor(tensor), matrix)


@KINDS
def test_arrays_in_another_memory_order_are_packed_as_they_read(zero):
    format = make_format(3, 32, zero)
    codes, parameters = random_matrix(format, 20, 96)
    turned = {
        name: None if array is None else np.asfortranarray(array)
        for name, array in vars(parameters).items()
    }
    found = pack(np.asfortranarray(codes), GroupParameters(**turned), format)
    np.testing.assert_array_equal(found, pack_reference(codes, parameters, format))
    twice = np.repeat(found, 2, axis=0)[::2]
    assert_same_matrix(unpack(twice, format, 20, 96), (codes, parameters))


def test_a_matrix_without_rows_has_no_tiles():
    format = make_format(4, ROW, ZeroKind.MINIMUM)
    matrix = random_matrix(format, 0, 12)
    tensor = pack_tensor(*matrix, format)
    assert tensor.tiles.shape == (0, 32 + 32 + 256)
    assert_same_matrix(unpack_tensor(tensor), matrix)


def test_a_code_that_does_not_fit_is_refused():
    one = GroupParameters(np.ones((1, 1), np.float16))
    with pytest.raises(UsageError, match="at most 7, found 8"):
        pack(np.array([[8]], np.uint8), one, make_format(3, ROW, ZeroKind.FIXED))
