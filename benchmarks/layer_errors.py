"""The H-weighted error of quantized linear layers, all measured on one and the same H.

In: a float model, calibration tokens, decoded weights by source and tensor name. Out: for each
source, tr(D H D^T) / tr(W H W^T) of every linear layer in the blocks, D = W - decoded.
H comes from the inputs of the float model, not from the stream that a quantizer saw, so no source
is measured on its own H. Holds one block and one H at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from crumb.calibrate.walk import walk_model
from crumb.run.model import Model

Decoded = Callable[[str], NDArray[np.float32]]
"""A tensor's name to its decoded weights, (out_features, in_features)."""


def layer_errors(
    model: Model, tokens: NDArray[np.int64], sources: Mapping[str, Decoded]
) -> dict[str, dict[str, float]]:
    """Relative error by source, then by tensor name. Shapes: tokens (sequences, length)."""
    errors: dict[str, dict[str, float]] = {source: {} for source in sources}
    for walk, group in walk_model(model.checkpoint, tokens):
        if walk.stage is model.plan.stages[-1]:
            break  # the head
        hessian = walk.statistics(group).hessian
        for linear in group.linears:
            weights = model.checkpoint.tensors.read_float(linear.weight)
            energy = weighted_square(weights, hessian)
            for source, decoded in sources.items():
                difference = weights - decoded(linear.weight)
                errors[source][linear.weight] = weighted_square(difference, hessian) / energy
    return errors


def weighted_square(matrix: NDArray[np.float32], hessian: NDArray[np.float64]) -> float:
    """tr(M H M^T) in f64. Shapes: matrix (rows, columns), hessian (columns, columns)."""
    return float(np.vdot(matrix @ hessian, matrix))


def geometric_mean(values: list[float]) -> float:
    """The mean of what is compared as ratios."""
    return float(np.exp(np.mean(np.log(values))))
