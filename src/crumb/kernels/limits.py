"""What the machine could do at best right now: bytes read, and multiply-adds, per second.

In: threads. Out: figures to compare a model's speed with. The memory and the clock of a shared
machine drift within seconds, so a measurement belongs right beside the work it is compared with.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.kernels.dispatch import selected_set, supported_sets

LEAST_ARRAY_BYTES = 1 << 30
"""More than any processor's caches hold."""

PAGE_BYTES = 4096
DOT_SECONDS = 0.05


def reading_array(array_bytes: int = LEAST_ARRAY_BYTES) -> NDArray[np.uint8]:
    """An array to read, written once so that each page has memory of its own."""
    pages = max(1, array_bytes // PAGE_BYTES)
    raw = np.empty((pages + 1) * PAGE_BYTES, np.uint8)
    begin = -raw.ctypes.data % PAGE_BYTES
    array = raw[begin : begin + pages * PAGE_BYTES]
    array.fill(1)
    return array


def read_pass(array: NDArray[np.uint8], threads: int) -> float:
    """Seconds in which so many threads together read an array once, with the widest loads."""
    return _native.read_pass(supported_sets()[-1], array, threads)


def dot_peak(threads: int, seconds: float = DOT_SECONDS, isa: str | None = None) -> float:
    """Multiply-adds per second of int8 products in registers alone, by the set's instructions."""
    return _native.dot_peak(isa or selected_set(), threads, seconds)


def float_peak(threads: int, seconds: float = DOT_SECONDS, isa: str | None = None) -> float:
    """Multiply-adds per second of f32 products in registers alone, by the set's instructions."""
    return _native.float_peak(isa or selected_set(), threads, seconds)
