"""Which instruction set the kernels use.

In: the CRUMB_ISA variable and what this machine supports. Out: the name of a set.
Refuses a set that is not compiled in or that this machine cannot run.
"""

from __future__ import annotations

import os

from crumb import _native
from crumb.errors import UsageError
from crumb.formats.catalog import ZeroKind

ZERO_CODE = {kind: code for code, kind in enumerate(ZeroKind)}
"""ZeroKind as native/kernels.hpp numbers it."""


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
