"""Random quantized matrices for the tests of layouts: any codes, scales and offsets of a format.

In: a format, a shape, a seed. Out: codes and parameters; and their comparison, byte for byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import CATALOG, Format, ZeroKind
from crumb.formats.grid import GroupParameters

Matrix = tuple[NDArray[np.uint8], GroupParameters]


def random_matrix(format: Format, rows: int, columns: int, seed: int = 0) -> Matrix:
    """Zero points, sub-scales and sub-minima are any that a layout can store."""
    rng = np.random.default_rng(seed)
    blocks, groups = (rows, format.blocks(columns)), (rows, format.whole_groups(columns))
    scale = rng.standard_normal(blocks).astype(np.float16)
    codes = rng.integers(0, 1 << format.bits, (rows, columns)).astype(np.uint8)
    fields: dict[str, NDArray[Any]] = {}
    if format.zero is ZeroKind.VARIABLE:
        fields["zero_point"] = rng.integers(0, 256, groups).astype(np.uint8)
    if format.zero is ZeroKind.MINIMUM:
        fields["minimum"] = rng.standard_normal(blocks).astype(np.float16)
    block = format.row.super_block
    if block is not None:
        fields["sub_scale"] = rng.integers(block.lowest, block.highest + 1, groups).astype(np.int8)
        fields["sub_scale"][:, format.groups(columns) :] = 0
        if format.zero is ZeroKind.MINIMUM:
            sub_minimum = rng.integers(0, block.highest + 1, groups).astype(np.uint8)
            fields["sub_minimum"] = sub_minimum
    return codes, GroupParameters(scale, **fields)


def is_ragged(format: Format) -> bool:
    """Whether rows need not be whole super-blocks."""
    return format.row.super_block is None or format.row.super_block.ragged


def first_format(name: str) -> Format:
    """A row's format with the first group size and zero kind that it lists."""
    row = CATALOG[name]
    return Format(row, row.group_sizes[0], row.zeros[0])


def all_formats() -> list[Format]:
    """Every row of the catalog with every zero kind and group size it lists."""
    return [
        Format(row, size, zero)
        for row in CATALOG.values()
        for zero in row.zeros
        for size in row.group_sizes
    ]


def assert_same_matrix(found: Matrix, expected: Matrix) -> None:
    """Equal codes, and parameters of equal bytes."""
    np.testing.assert_array_equal(found[0], expected[0])
    for name, array in vars(expected[1]).items():
        other = getattr(found[1], name)
        assert (other is None) == (array is None), name
        if array is not None:
            assert other.dtype == array.dtype, name
            assert other.tobytes() == array.tobytes(), name
