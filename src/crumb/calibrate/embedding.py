"""What an error in an embedding costs: H for a table that nothing multiplies.

In: a Plan, its weights, the calibration tokens. Out: LayerStatistics like those of a linear layer.
A row of an embedding joins the stream that the last norm and the head read, W diag(g). Under the
share f of each token an error e there moves the logits by a variance of e^T C e, with
C = diag(g) W^T (diag(f) - f f^T) W diag(g); the blocks on the way read it too, in any direction.
A matrix that is also the head counts both ways. Refuses what is not finite, naming the tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.calibrate.statistics import LayerStatistics, accumulate
from crumb.calibrate.walk import LinearGroup, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.operations.linear import Linear
from crumb.operations.norm import Norm
from crumb.operations.operation import Array, TensorSpec

Moment = NDArray[np.float64]
Read = Callable[..., Array]
"""A tensor of the checkpoint in f32: name, and some of its rows."""

ANY_DIRECTION = 0.2
"""Weight of the identity beside C. (3-bit embedding of novella-7m, untied: the KL falls by 62 %;
with .5 by 57 %, with 1 by 50 %.)"""

UNSEEN = 0.5
"""Added to the count of each token, for calibration sees few of them."""

ROWS_AT_ONCE = 8192
"""Rows of the head that are read together."""


def embedding_statistics(
    checkpoint: Checkpoint,
    spec: TensorSpec,
    tokens: NDArray[np.int64],
    head_input: LayerStatistics | None = None,
) -> LayerStatistics | None:
    """The H of an embedding's rows, mean diagonal about 1; None where no head reads its features.

    Shapes: tokens (texts, length); only a tied head runs them, through the checkpoint's weights,
    unless the statistics of its input are there.
    """
    plan, read = checkpoint.plan, checkpoint.tensors.read_float
    head = _head(plan)
    if head is None or head.in_features != spec.shape[1]:
        return None
    hessian = _scaled(_logit_curvature(plan, head, read, tokens))
    hessian += ANY_DIRECTION * np.eye(len(hessian))
    if head.weight == spec.name:
        read_by_head = head_input or _head_statistics(checkpoint, tokens)
        hessian += _scaled(read_by_head.hessian)
    return LayerStatistics(hessian, tokens.size)


def _head(plan: Plan) -> Linear | None:
    """The last linear layer of all."""
    linears = [each for each in plan.stages[-1].operations if isinstance(each, Linear)]
    return linears[-1] if linears else None


def _scaled(moment: Moment) -> Moment:
    mean = float(moment.diagonal().mean())
    return moment / mean if mean > 0 else moment


def _logit_curvature(plan: Plan, head: Linear, read: Read, tokens: NDArray[np.int64]) -> Moment:
    """C, (features, features)."""
    counts = np.bincount(tokens.ravel(), minlength=head.out_features)
    share = counts[: head.out_features] + UNSEEN
    share /= share.sum()
    moment = np.zeros((head.in_features, head.in_features), np.float64)
    mean = np.zeros(head.in_features, np.float64)
    for begin in range(0, head.out_features, ROWS_AT_ONCE):
        rows = slice(begin, min(begin + ROWS_AT_ONCE, head.out_features))
        weights = read(head.weight, rows)
        mean += share[rows] @ weights
        shared = weights * np.sqrt(share[rows, None]).astype(np.float32)
        moment += accumulate([shared], head.weight).hessian * len(shared)
    moment -= np.outer(mean, mean)
    for norm in plan.stages[-1].operations:
        if isinstance(norm, Norm) and norm.output == head.input:
            assert norm.weight is not None, "a model's last norm has a weight"
            gain = norm.offset + read(norm.weight).astype(np.float64)
            moment *= np.outer(gain, gain)
            if norm.kind == "layer":  # takes the mean of the features off
                moment -= moment.mean(0)
                moment -= moment.mean(1)[:, None]
    return moment


def _head_statistics(checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> LayerStatistics:
    """Statistics of the head's input in the float model."""
    stages = checkpoint.plan.stages
    for walk, group in walk_model(checkpoint, tokens):
        if walk.stage is stages[-1] and isinstance(group, LinearGroup):
            return walk.statistics(group)
    raise AssertionError("the last stage has a head")
