"""LayerStatistics: the second moment of a layer's input over the calibration tokens.

In: batches of the layer's input. Out: H = X^T X / tokens in f64 (the constant 2 of the paper does
not change any choice). Products are f32 over one batch, totals f64, in the order of the batches.
Refuses inputs that are not finite, naming the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError
from crumb.kernels.threads import parallel_map

BLOCK, WIDE_BLOCK = 192, 384
"""Rows and columns of H that are accumulated at once: bounds the f32 product beside the total.
Larger ones are faster, but an input below WIDE has too few of them for all processors."""

WIDE = 1536
"""Features."""


@dataclass(frozen=True)
class LayerStatistics:
    """What the solvers need to know of a layer's input."""

    hessian: NDArray[np.float64]  # (in_features, in_features), symmetric
    tokens: int  # as many as count: fewer where they have weights


def accumulate(
    batches: Sequence[NDArray[np.float32]], layer: str, weights: NDArray[np.float32] | None = None
) -> LayerStatistics:
    """Statistics of one layer's input; `weights` count its tokens, 1 on the average.

    Shapes: each batch (..., in_features), weights (tokens of all batches,).
    Raises: SolveError for NaN or infinite inputs.
    """
    in_features = batches[0].shape[-1]
    flat = [batch.reshape(-1, in_features) for batch in batches]
    tokens = sum(len(batch) for batch in flat)
    ends = np.cumsum([len(batch) for batch in flat])
    shares = [None] * len(flat) if weights is None else np.split(weights[:, None], ends[:-1])
    hessian = np.zeros((in_features, in_features), np.float64)
    size = WIDE_BLOCK if in_features >= WIDE else BLOCK

    def block(corner: tuple[int, int]) -> None:
        rows, columns = (slice(begin, begin + size) for begin in corner)
        total = hessian[rows, columns]
        with np.errstate(invalid="ignore", over="ignore"):  # refused below, by name
            for batch, share in zip(flat, shares, strict=True):
                left = batch[:, rows] if share is None else batch[:, rows] * share
                total += left.T @ batch[:, columns]
        total /= tokens

    begins = range(0, in_features, size)
    upper = [(row, column) for row in begins for column in begins if row <= column]
    # The diagonal's blocks come last: NumPy computes half of X^T X, so they even out the threads.
    parallel_map(block, sorted(upper, key=lambda corner: corner[0] == corner[1]))
    _mirror(hessian)
    if not np.isfinite(hessian.diagonal()).all():
        raise SolveError(
            "the calibration inputs of this layer are not finite",
            where=layer,
            found=f"{int((~np.isfinite(hessian.diagonal())).sum())} of {in_features} features",
            do="Check the checkpoint for NaN or infinite weights",
        )
    return LayerStatistics(hessian, tokens if weights is None else effective_tokens(weights))


def effective_tokens(weights: NDArray[np.float32]) -> int:
    """How many tokens of equal weight say as much: (sum w)^2 / sum w^2."""
    return round(float(weights.sum()) ** 2 / float((weights**2).sum()))


def _mirror(matrix: NDArray[np.float64]) -> None:
    """Copy the upper triangle onto the lower, block by block."""
    size = len(matrix)
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        matrix[end:, begin:end] = matrix[begin:end, end:].T
        corner = matrix[begin:end, begin:end]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
