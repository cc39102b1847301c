"""Pack and unpack the dense bit stream natively.

In: codes or bytes, as formats/bit_stream.py defines them. Out: the other.
Reference: formats.bit_stream.pack_reference and unpack_reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.formats.bit_stream import check_codes, row_bytes


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack each row. Shapes: (rows, count) -> (rows, row_bytes). Raises: UsageError."""
    check_codes(codes, bits)
    packed = np.empty((codes.shape[0], row_bytes(codes.shape[1], bits)), np.uint8)
    _native.pack(np.ascontiguousarray(codes), packed, bits)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Undo pack. Shapes: (rows, row_bytes) -> (rows, count)."""
    codes = np.empty((packed.shape[0], count), np.uint8)
    _native.unpack(np.ascontiguousarray(packed), codes, bits)
    return codes
