"""Refine what the sweeps of GPTQ left: codes one by one, then scales, each under all of H.

In: a Layer, its best Pass. Out: a Pass whose rows have at most the loss they had.
With N = H / diag(H), the value that column j would best have beside the others is
t_j = w_j + sum over k != j of e_k N[k, j]: GPTQ's sweep, but every other column answers and not
only those before. A group's scale moves by d = c H e / c H c for its levels c, rounded to fp16.
Source: coordinate descent after GPTQ, arXiv 2602.02126. Refuses nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import ZeroKind
from crumb.formats.grid import decode_columns
from crumb.kernels.gptq_sweep import sweep
from crumb.solve.product import product
from crumb.solve.sweep import Layer, Pass, grid_of

Floats = NDArray[np.float32]

BLOCK = 128
"""Columns that are swept together; between blocks matrix products carry the errors."""


def refined(layer: Layer, best: Pass) -> Pass:
    """The best pass after `refinements` rounds of codes and scales, row by row the better."""
    for _ in range(layer.settings.refinements):
        best = best.better(_with_codes(layer, best))
        if layer.format.row.super_block is None:
            best = best.better(_with_scales(layer, best))
    return best


def _with_codes(layer: Layer, best: Pass) -> Pass:
    """Each code in turn the nearest to what all other columns leave to it."""
    coupling = layer.factored.coupling
    codes, error = best.codes.copy(), best.error.copy()
    for begin in range(0, layer.in_features, BLOCK):
        columns = slice(begin, min(begin + BLOCK, layer.in_features))
        inside = np.triu(coupling[columns, columns])
        weights = np.ascontiguousarray(layer.weights[:, columns])
        others = product(error, coupling[:, columns]) - error[:, columns] @ inside
        grid = grid_of(best.parameters, layer.format, layer.group[columns])
        codes[:, columns], error[:, columns] = sweep(weights + others, weights, inside, grid)
    return replace(best, codes=codes, error=error, loss=layer.loss(error))


def _with_scales(layer: Layer, best: Pass) -> Pass:
    """Each group's scale in turn the best beside all others, where fp16 holds a better one."""
    coupling, diagonal = layer.factored.coupling, layer.factored.damped_diagonal
    levels = _levels(layer, best)
    error, scale = best.error.copy(), best.parameters.scale.copy()
    for group in range(scale.shape[1]):
        columns = np.flatnonzero(layer.group == group)
        inside = levels[:, columns]
        pull = (error @ coupling[:, columns]) * diagonal[columns]  # (e H) of the group
        weighed = inside @ (coupling[np.ix_(columns, columns)] * diagonal[columns])
        gain = np.einsum("rc,rc->r", inside, pull, dtype=np.float64)
        cost = np.einsum("rc,rc->r", inside, weighed, dtype=np.float64)
        old = scale[:, group].astype(np.float64)
        best_scale = old + gain / np.where(cost > 0, cost, 1.0)
        half = np.clip(best_scale, -65504, 65504).astype(np.float16)
        step = half.astype(np.float64) - old
        better = (cost > 0) & (half != 0) & (2 * step * gain > np.square(step) * cost)
        scale[better, group] = half[better]
        error[:, columns] -= np.where(better, step, 0.0).astype(np.float32)[:, None] * inside
    parameters = replace(best.parameters, scale=scale)
    decoded = _decoded(layer, replace(best, parameters=parameters))
    error = layer.weights - decoded
    return replace(best, parameters=parameters, error=error, loss=layer.loss(error))


def _levels(layer: Layer, best: Pass) -> Floats:
    """What a group's scale multiplies, (rows, columns) in the sweep's order."""
    if layer.format.row.table is not None:
        return np.array(layer.format.row.table, np.float32)[best.codes]
    levels = best.codes.astype(np.float32)
    if layer.format.zero is not ZeroKind.MINIMUM:
        levels -= best.parameters.offset(layer.format)[:, layer.group]
    return levels


def _decoded(layer: Layer, chosen: Pass) -> Floats:
    scale = chosen.parameters.group_scale()[:, layer.group]
    if layer.format.row.table is not None:
        return _levels(layer, chosen) * scale
    offset = chosen.parameters.offset(layer.format)[:, layer.group]
    return decode_columns(chosen.codes, scale, offset, layer.format.zero)
