"""The native engine's face: its class, its numbers for kinds, the sizes it asks of its caller.

In: nothing. Out: NativeEngine, which run/program.py fills and run/engine.py steps. Its reference
is the array executor. native/engine_bindings.cpp checks every size; run/ checks meaning.
"""

from __future__ import annotations

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
]
