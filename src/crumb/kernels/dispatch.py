"""Which instruction set the kernels use, and their numbers for the kinds of a format.

In: the CRUMB_ISA variable, what this machine supports, a format. Out: a set's name, numbers.
Refuses a set that is not compiled in or that this machine cannot run.
"""

from __future__ import annotations

import os

from crumb import _native
from crumb.errors import UsageError
from crumb.formats.catalog import Format
from crumb.formats.layouts.tile import sharing


def zero_code(format: Format) -> int:
    """The kernels' number for the kind of a format's zero."""
    return _native.ZERO_KINDS[format.zero]


def sub_code(format: Format) -> int:
    """The kernels' number for how the groups of a format's super-blocks share its scales."""
    if format.row.super_block is None:
        return _native.SUB_KINDS["none"]
    return _native.SUB_KINDS[sharing(format).value]


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
