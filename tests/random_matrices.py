"""Random quantized matrices for the tests of layouts: any codes, scales and offsets of a format.

In: a format, a shape, a seed. Out: codes and parameters; and their comparison, byte for byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.grid import GroupParameters

Matrix = tuple[NDArray[np.uint8], GroupParameters]


def random_matrix(format: Format, rows: int, columns: int, seed: int = 0) -> Matrix:
    """Zero points are any byte: a layout stores what it is given."""
    rng = np.random.default_rng(seed)
    shape = (rows, format.groups(columns))
    scale = rng.standard_normal(shape).astype(np.float16)
    codes = rng.integers(0, 1 << format.bits, (rows, columns)).astype(np.uint8)
    if format.zero is ZeroKind.VARIABLE:
        points = rng.integers(0, 256, shape).astype(np.uint8)
        return codes, GroupParameters(scale, zero_point=points)
    if format.zero is ZeroKind.MINIMUM:
        minimum = rng.standard_normal(shape).astype(np.float16)
        return codes, GroupParameters(scale, minimum=minimum)
    return codes, GroupParameters(scale)


def assert_same_matrix(found: Matrix, expected: Matrix) -> None:
    """Equal codes, and parameters of equal bytes."""
    np.testing.assert_array_equal(found[0], expected[0])
    for name, array in vars(expected[1]).items():
        other = getattr(found[1], name)
        assert (other is None) == (array is None), name
        if array is not None:
            assert other.dtype == array.dtype, name
            assert other.tobytes() == array.tobytes(), name
