"""One dense bit stream for all code widths: the reference packer.

In: unsigned codes. Out: bytes, least significant bit first, each row padded to a whole byte.
Code j of a row occupies bits j*bits .. j*bits + bits - 1 of the row's stream.
Refuses codes that do not fit their width. `kernels.bit_stream` is the fast twin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError


def row_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of this width occupy."""
    return -(-count * bits // 8)


def pack_reference(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack each row of codes.

    Shapes: codes (rows, count) -> (rows, row_bytes). Raises: UsageError for a code over 2^bits - 1.
    """
    check_codes(codes, bits)
    each_bit = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(
        each_bit.reshape(codes.shape[0], codes.shape[1] * bits), axis=-1, bitorder="little"
    )


def unpack_reference(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Undo pack_reference. Shapes: packed (rows, row_bytes) -> (rows, count)."""
    each_bit = np.unpackbits(packed, axis=-1, bitorder="little", count=count * bits)
    each_code = each_bit.reshape(packed.shape[0], count, bits)
    return np.packbits(each_code, axis=-1, bitorder="little")[..., 0]


def check_codes(codes: NDArray[Any], bits: int) -> None:
    """Refuse codes that do not fit their width. Raises: UsageError."""
    largest = int(codes.max(initial=0))
    if largest >= 1 << bits:
        raise UsageError(
            "a code does not fit its width", expected=f"at most {(1 << bits) - 1}", found=largest
        )
