"""Which instruction set the kernels use.

In: the CRUMB_ISA variable and what this machine supports. Out: the name of a set.
Refuses a set that is not compiled in or that this machine cannot run.
"""

from __future__ import annotations

import os

from crumb import _native
from crumb.errors import UsageError
from crumb.formats.catalog import Format, ZeroKind
from crumb.formats.layouts.tile import shares_bytes

ZERO_CODE = {kind: code for code, kind in enumerate(ZeroKind)}
"""ZeroKind as native/run_kernels.hpp numbers it."""


NO_SUB, SUB_BYTES, SUB_DIGITS = range(3)
"""SubKind as native/run_kernels.hpp numbers it."""


def sub_code(format: Format) -> int:
    """How the groups of a format's super-blocks share its scales."""
    if format.row.super_block is None:
        return NO_SUB
    return SUB_DIGITS if shares_bytes(format) else SUB_BYTES


def supported_sets() -> list[str]:
    """Instruction sets this machine runs, slowest first."""
    return _native.supported_sets()


def selected_set() -> str:
    """The set in use: CRUMB_ISA if given, else the fastest supported.

    Raises: UsageError.
    """
    supported = supported_sets()
    isa = os.environ.get("CRUMB_ISA") or supported[-1]
    if isa not in supported:
        raise UsageError(
            "this machine has no such instruction set",
            where="CRUMB_ISA",
            expected=f"one of {', '.join(supported)}",
            found=isa,
        )
    return isa
