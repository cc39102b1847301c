"""Choose the next token from logits: greedy, or temperature within the most likely mass.

In: logits (vocabulary,) and a Sampling. Out: a token. Refuses settings outside their range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0  # 0: the most likely token
    top_p: float = 1.0  # the smallest set of tokens that holds this probability
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0.0, 100.0), ("top_p", 1e-9, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(
                    "a sampling setting is out of range",
                    where=name,
                    expected=f"{low:g} to {high:g}",
                    found=value,
                )


def sample(logits: NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> int:
    """One token. Shapes: logits (vocabulary,)."""
    if sampling.temperature == 0.0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    probability = np.exp(scaled[order] - scaled[order[0]])
    probability /= probability.sum()
    count = int(np.searchsorted(np.cumsum(probability), sampling.top_p)) + 1
    chosen = probability[:count] / probability[:count].sum()
    return int(generator.choice(order[:count], p=chosen))
