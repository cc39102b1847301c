"""What an export did to each tensor.

In: the formats before and after. Out: a record of each tensor: exact, or changed and by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorReport:
    """One tensor of an export."""

    name: str
    source: str  # format or float type it had
    target: str  # what the written file calls its format
    exact: bool  # every weight decodes to what it was
    change: float = 0.0  # root mean square of the weights' change over that of the weights
    note: str = ""  # why it was changed


Told = Callable[[TensorReport], None]
"""Told of each tensor as it is written."""
