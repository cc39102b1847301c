"""The native engine's face: its class, its numbers for kinds, the sizes it asks of its caller.

In: nothing. Out: NativeEngine, which run/program.py fills and run/engine.py steps. Its reference
is the array executor. native/engine_bindings.cpp checks every size; run/ checks meaning.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb._native import (
    BLOCK_INPUTS,
    CACHE_KINDS,
    FLOAT_KINDS,
    PAGE_TOKENS,
    NativeEngine,
    activation_rows,
    activation_stride,
    attention_scratch_floats,
    buffer_stride,
    cache_head_bytes,
    grouped_rows,
    grouping_integers,
    matmul_scratch_bytes,
)
from crumb.formats.catalog import CodeRow

TABLE_BYTES = 16
"""What a kernel reads of a table, however few levels it has."""


def table_bytes(row: CodeRow) -> NDArray[np.uint8] | None:
    """A table as add_tiles takes it: each level + 128, behind them 0; None without a table."""
    if row.table is None:
        return None
    levels = np.zeros(TABLE_BYTES, np.uint8)
    levels[: len(row.table)] = np.asarray(row.table, np.int16) + 128
    return levels


__all__ = [
    "BLOCK_INPUTS",
    "CACHE_KINDS",
    "FLOAT_KINDS",
    "PAGE_TOKENS",
    "NativeEngine",
    "activation_rows",
    "activation_stride",
    "attention_scratch_floats",
    "buffer_stride",
    "cache_head_bytes",
    "grouped_rows",
    "grouping_integers",
    "matmul_scratch_bytes",
    "table_bytes",
]
