"""Random blocks and matrices of GGUF's types, for their tests.

In: a type, a shape, a seed. Out: bytes whose scales are finite, or codes and parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from random_matrices import Matrix

from crumb.formats.catalog import ZeroKind
from crumb.formats.grid import GroupParameters
from crumb.formats.layouts.gguf_types import GGUF_TYPES, GgufType, ScaleCode

QUANTIZED = [row.name for row in GGUF_TYPES.values() if row.format is not None]


def random_blocks(row: GgufType, rows: int, in_features: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rows of any bytes, but for infinities and what is not a number in the fp16 places."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, row.row_bytes(in_features))).astype(np.uint8)
    blocks = raw.reshape(-1, row.block_bytes)
    if row.scale_code is ScaleCode.EXPONENT:
        blocks[:, row.scale_byte] = rng.integers(104, 144, len(blocks))
        return raw
    for at in (row.scale_byte, row.minimum_byte):
        if at is not None:
            high = blocks[:, at + 1]
            high[high & 0x7C == 0x7C] ^= 0x40
    return raw


def random_of_type(row: GgufType, rows: int, in_features: int, seed: int = 0) -> Matrix:
    """Any codes and parameters that the type holds."""
    rng = np.random.default_rng(seed)
    format = row.format
    assert format is not None, "a type with codes"
    groups, blocks = (rows, format.groups(in_features)), (rows, format.blocks(in_features))
    codes = rng.integers(0, 1 << format.bits, (rows, in_features)).astype(np.uint8)
    scale = rng.standard_normal(blocks)
    if row.scale_code is ScaleCode.EXPONENT:
        scale = np.ldexp(1.0, rng.integers(-24, 16, blocks))
    fields: dict[str, NDArray[Any]] = {"scale": scale.astype(np.float16)}
    block = format.row.super_block
    has_minimum = format.zero is ZeroKind.MINIMUM
    if has_minimum:
        fields["minimum"] = rng.standard_normal(blocks).astype(np.float16)
    if block is not None:
        sub_scale = rng.integers(block.lowest, block.highest, groups, np.int8, endpoint=True)
        fields["sub_scale"] = sub_scale
        if has_minimum:
            sub_minimum = rng.integers(0, block.highest, groups, np.uint8, endpoint=True)
            fields["sub_minimum"] = sub_minimum
    return codes, GroupParameters(**fields)
