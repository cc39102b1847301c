"""Refine what the sweeps of GPTQ left: codes one by one, then scales, each under all of H.

In: a Layer, its best Pass. Out: a Pass whose rows have at most the loss they had.
With N = H / diag(H), the value that column j would best have beside the others is
t_j = w_j + sum over k != j of e_k N[k, j]: GPTQ's sweep, but every other column answers and
not only those before. A scale moves by d = c H e / c H c for its levels c, rounded as it is stored:
to a power of two where the format has these.
Source: coordinate descent after GPTQ, arXiv 2602.02126. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import ScaleKind, ZeroKind
from crumb.formats.grid import decode_columns
from crumb.formats.powers_of_two import nearest_power
from crumb.formats.super_blocks import block_of, groups_of_block
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
        best = best.better(_with_scales(layer, best))
    return best


def _with_codes(layer: Layer, best: Pass) -> Pass:
    """Each code in turn the nearest to what all other columns leave to it."""
    coupling = layer.factored.coupling
    codes, error = best.codes.copy(), best.error.copy()
    for begin in range(0, layer.coded, BLOCK):
        columns = slice(begin, min(begin + BLOCK, layer.coded))
        inside = np.triu(coupling[columns, columns])
        weights = np.ascontiguousarray(layer.weights[:, columns])
        others = product(error, coupling[:, columns]) - error[:, columns] @ inside
        grid = grid_of(best.parameters, layer.format, layer.group[columns])
        codes[:, columns], error[:, columns] = sweep(weights + others, weights, inside, grid)
    layer.answer(error)
    return replace(best, codes=codes, error=error, loss=layer.loss(error))


def _with_scales(layer: Layer, best: Pass) -> Pass:
    """Each number of a scale in turn the best beside all others, where the format holds a better.

    In super-blocks these are the whole numbers of the groups, then the fp16 numbers of all blocks.
    """
    levels, error = _levels(layer, best), best.error.copy()
    scale = best.parameters.scale.astype(np.float64)
    parameters, of_block = best.parameters, 1
    if parameters.sub_scale is not None:
        of_block = groups_of_block(layer.format)
        whole, block = parameters.sub_scale.astype(np.float64), block_of(layer.format)
        for group in range(layer.group.max() + 1):
            columns = np.flatnonzero(layer.group == group)
            inside = levels[:, columns] * scale[:, group // of_block, None].astype(np.float32)
            nearest = partial(_nearest_whole, lowest=block.lowest, highest=block.highest)
            _move(layer, error, columns, inside, whole[:, group], nearest)
        parameters = replace(parameters, sub_scale=whole.astype(np.int8))
        levels = levels * whole.astype(np.float32)[:, layer.group]
    rounded = nearest_power if layer.format.row.scale is ScaleKind.POWER else _nearest_half
    for number in range(scale.shape[1]):
        columns = np.flatnonzero(layer.group // of_block == number)
        _move(layer, error, columns, levels[:, columns], scale[:, number], rounded)
    parameters = replace(parameters, scale=scale.astype(np.float16))
    error = layer.weights - _decoded(layer, replace(best, parameters=parameters))
    layer.answer(error)
    return replace(best, parameters=parameters, error=error, loss=layer.loss(error))


def _move(
    layer: Layer,
    error: Floats,
    columns: NDArray[np.intp],
    inside: Floats,
    number: NDArray[np.float64],
    nearest: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    """A number of each row, which multiplies `inside`, the best beside all other columns' errors.

    Shapes: error (rows, all columns), inside (rows, columns), number (rows,). The error and the
    number are changed.
    """
    coupling, diagonal = layer.factored.coupling, layer.factored.damped_diagonal
    pull = (error @ coupling[:, columns]) * diagonal[columns]  # (e H) of these columns
    weighed = inside @ (coupling[np.ix_(columns, columns)] * diagonal[columns])
    gain = np.einsum("rc,rc->r", inside, pull, dtype=np.float64)
    cost = np.einsum("rc,rc->r", inside, weighed, dtype=np.float64)
    moved = nearest(number + gain / np.where(cost > 0, cost, 1.0))
    step = moved - number
    better = (cost > 0) & (moved != 0) & (2 * step * gain > np.square(step) * cost)
    error[:, columns] -= np.where(better, step, 0.0).astype(np.float32)[:, None] * inside
    number[better] = moved[better]


def _nearest_half(number: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest that fp16 holds."""
    return np.clip(number, -65504, 65504).astype(np.float16).astype(np.float64)


def _nearest_whole(number: NDArray[np.float64], lowest: int, highest: int) -> NDArray[np.float64]:
    return np.clip(np.rint(number), lowest, highest)


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
