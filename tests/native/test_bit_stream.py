"""Native packing against its slow twin: every width, every count up to two periods, any row count.

Packing has one implementation for all instruction sets, so CRUMB_ISA plays no part here.
"""

import numpy as np
import pytest

from crumb.errors import UsageError
from crumb.formats.bit_stream import pack_reference, unpack_reference
from crumb.formats.catalog import INTEGERS
from crumb.kernels.bit_stream import pack, unpack

WIDTHS = [row.bits for row in INTEGERS.values()]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 3, 17])
def test_packing_gives_the_references_bytes(bits, rows):
    rng = np.random.default_rng(bits)
    for count in (*range(18), 31, 32, 33, 64, 129):
        codes = rng.integers(0, 1 << bits, (rows, count)).astype(np.uint8)
        packed = pack(codes, bits)
        np.testing.assert_array_equal(packed, pack_reference(codes, bits))
        np.testing.assert_array_equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_unpacking_reads_any_bytes_as_the_reference_does(bits):
    rng = np.random.default_rng(bits)
    for count in range(1, 34):
        packed = rng.integers(0, 256, (3, -(-count * bits // 8))).astype(np.uint8)
        np.testing.assert_array_equal(
            unpack(packed, bits, count), unpack_reference(packed, bits, count)
        )


def test_strided_arrays_are_packed_as_they_read():
    codes = np.random.default_rng(0).integers(0, 8, (40, 12)).astype(np.uint8)
    np.testing.assert_array_equal(pack(codes[::2].T, 3), pack_reference(codes[::2].T.copy(), 3))
    packed = pack(codes, 3)
    np.testing.assert_array_equal(unpack(packed[::3], 3, 12), codes[::3])


def test_a_code_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="at most 7, found 8"):
        pack(np.array([[8]], np.uint8), 3)
