"""Numbers as users give them: Python's own, NumPy's, whatever says that it is one.

In: any value. Out: a plain int or float, or None where it is no such number. True is no number.
"""

from __future__ import annotations

import operator
from numbers import Real

import numpy as np


def as_integer(value: object) -> int | None:
    """A whole number as a plain int; 2.0 is none."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def as_float(value: object) -> float | None:
    """A real number as a plain float."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
