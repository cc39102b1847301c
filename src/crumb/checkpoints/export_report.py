"""What an export did to each tensor.

In: the formats before and after, and the weights before and after where they differ. Out: a record
a tensor: exact, or changed and by how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorReport:
    """One tensor of an export."""

    name: str
    source: str  # format or float type it had
    target: str  # what the written file calls its format
    exact: bool  # every weight decodes to what it was
    change: float = 0.0  # root mean square of the weights' change over that of the weights
    note: str = ""  # why it was changed


def relative_change(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Root mean square of a tensor's change over that of the tensor; 0 for what is equal."""
    moved = np.sum(np.square(after - before, dtype=np.float64))
    if not moved:
        return 0.0
    size = np.sum(np.square(before, dtype=np.float64))
    return float(np.sqrt(moved / max(size, np.finfo(np.float64).tiny)))
