"""Which instruction set the kernels use, and how rows are shared among threads.

In: the CRUMB_ISA variable and the processors this process may use. Out: a set's name, row slices.
Refuses a set that is not compiled in or that this machine cannot run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from crumb import _native
from crumb.errors import UsageError
from crumb.formats.catalog import ZeroKind

ZERO_CODE = {kind: code for code, kind in enumerate(ZeroKind)}
"""ZeroKind as native/kernels.hpp numbers it."""

ROWS_PER_LANE_SET = 16
"""Rows that travel together; threads split at multiples of it."""


def supported_sets() -> list[str]:
    """Instruction sets this machine runs, slowest first."""
    return _native.supported_sets()


def selected_set() -> str:
    """The set in use: CRUMB_ISA if given, else the fastest supported.

    Raises: UsageError.
    """
    supported = supported_sets()
    wanted = os.environ.get("CRUMB_ISA") or supported[-1]
    if wanted not in supported:
        raise UsageError(
            "this machine has no such instruction set",
            where="CRUMB_ISA",
            expected=f"one of {', '.join(supported)}",
            found=wanted,
        )
    return wanted


def processors() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0))


def over_rows(rows: int, work: Callable[[slice], None]) -> None:
    """Call work on slices that cover all rows, one slice a processor. Rows must be independent."""
    per_thread = max(1, -(-rows // processors()))
    per_thread = -(-per_thread // ROWS_PER_LANE_SET) * ROWS_PER_LANE_SET
    slices = [slice(begin, begin + per_thread) for begin in range(0, rows, per_thread)]
    if len(slices) <= 1:
        work(slice(0, rows))
        return
    with ThreadPoolExecutor(len(slices)) as pool:
        for done in [pool.submit(work, part) for part in slices]:
            done.result()
