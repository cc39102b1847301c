"""One token drawn from scores: temperature, top_k, top_p of what top_k left, min_p, one draw.

In: scores (vocabulary,) f32, finite or -inf; the filters; a number of [0, 1). Out: a place.
Equal scores: the lower index is the likelier. Weights are exp((score - best) / temperature) in f32,
0 from FARTHEST temperatures below the best on; their sums are f64.
Source: the order of the filters is that of transformers' logits warpers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.kernels.dispatch import selected_set

Scores = NDArray[np.float32]

FARTHEST = 80.0
"""As kFarthest of native/draw.hpp."""


def draw(
    scores: Scores, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """The place that is drawn; top_k of 0 leaves all."""
    best = float(scores.max())
    isa = selected_set()
    return _native.draw(isa, scores, best, temperature, top_k, top_p, min_p, uniform)


def draw_reference(
    scores: Scores, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """The same by sorting all scores."""
    rate = np.float32(min(1.0 / temperature, 1e30))
    with np.errstate(over="ignore"):
        far = (scores.max() - scores) * rate
    weights = np.where(far < FARTHEST, np.exp(-far), np.float32(0.0)).astype(np.float64)
    order = np.lexsort((np.arange(len(scores)), -scores))
    if 0 < top_k < len(order):
        order = order[:top_k]
    if top_p < 1.0:
        running = np.cumsum(weights[order])
        order = order[: int(np.searchsorted(running, top_p * running[-1])) + 1]
    left = np.sort(order[weights[order] >= min_p])
    running = np.cumsum(weights[left])
    return int(left[np.searchsorted(running, uniform * running[-1], side="right")])
