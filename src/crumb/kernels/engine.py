"""The native engine's face: its class, the sizes it asks of its caller, the page of its cache.

In: nothing. Out: NativeEngine, which run/program.py fills and run/engine.py steps. Its reference
is the array executor. native/engine_bindings.cpp checks every size; run/ checks meaning.
"""

from __future__ import annotations

from crumb._native import (
    PAGE_TOKENS,
    NativeEngine,
    attention_scratch_floats,
    cache_head_bytes,
    grouped_rows,
    grouping_integers,
    matmul_scratch_bytes,
)

__all__ = [
    "PAGE_TOKENS",
    "NativeEngine",
    "attention_scratch_floats",
    "cache_head_bytes",
    "grouped_rows",
    "grouping_integers",
    "matmul_scratch_bytes",
]
