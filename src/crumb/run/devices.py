"""Where the array executor's arrays lie: NumPy's memory, or a device of PyTorch.

In: the name of a device. Out: a function that takes NumPy arrays there.
Refuses devices that PyTorch does not have here, and any but the CPU where PyTorch is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from crumb.errors import UsageError
from crumb.operations.operation import Array

MOST_CHARACTERS = 60
"""Of what PyTorch says: it may list every device of its source."""


def arrays_on(device: str) -> Callable[[Any], Array]:
    """For `Model.as_array`. Raises: UsageError."""
    if device == "cpu":
        return np.asarray
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UsageError(
            "PyTorch is not installed",
            where="device",
            found=device,
            do="Install torch, or leave the device out",
        ) from error
    try:
        place = torch.device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            "PyTorch has no such device here",
            where="device",
            expected="cpu, cuda, cuda:1, mps",
            found=f"{device} ({str(error).splitlines()[0][:MOST_CHARACTERS]})",
        ) from error
    return lambda array: torch.as_tensor(np.ascontiguousarray(array)).to(place)
