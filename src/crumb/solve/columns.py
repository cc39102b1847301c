"""Float columns of a matrix: which pay for their bytes, and what they hold in the end.

In: a LayerProblem and some rows, or a swept Layer. Out: the problem with its columns, or weights.
A float column has no error of its own, so it comes last in the sweep and takes up the others': with
F the float columns, D_F = -D_Q H_QF H_FF^-1, and the loss is D_Q (H_QQ - H_QF H_FF^-1 H_FQ) D_Q^T.
A group is rounded with and without its worst columns; what a column saves is compared with what its
bytes save as finer groups or wider codes, first by rounding, then by the solver's own error.
Source of the idea: SpQR and OWQ (arXiv 2306.03078, 2306.02272). Refuses what the solver refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, exp, log

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import GROUP_SIZES, INTEGERS, ROW, Format, ZeroKind, make_format
from crumb.formats.float_columns import as_halves
from crumb.formats.grid import decode_reference, encode_reference, group_of_column
from crumb.kernels.gptq_sweep import sweep
from crumb.solve.factored import Factored, with_floats_last
from crumb.solve.problem import LayerProblem, LayerSolution, Method, SolveSettings, check_finite
from crumb.solve.scales import fit_scales
from crumb.solve.sweep import Layer, Pass, grid_of

Floats = NDArray[np.float32]
Columns = NDArray[np.intp]

FLOAT_BITS = 16
SAMPLE_ROWS = 128
"""Rows, spread over the matrix, that say which columns pay."""

TOGETHER = (*range(1, 9), 12, 16, 24, 32, 48, 64, 96, 128)
"""So many columns of a group are taken out at once: of two alike, one alone saves little."""

ROUNDS = 4
USUAL_NATS = log(4.0)
"""By which a bit more of each weight lowers the error's logarithm where nothing can be measured."""


def with_columns(
    problem: LayerProblem, weights: Floats, solve: Callable[[LayerProblem], LayerSolution]
) -> LayerProblem:
    """The problem with the float columns that pay for their bytes, its H ready for them.

    Shapes: weights (rows, in_features), of which a sample is looked at.
    """
    check_finite(weights, problem.name, problem.first_row)
    sample = np.ascontiguousarray(weights[:: -(-len(weights) // SAMPLE_ROWS)])
    nats = nats_of_bit(sample, problem)
    columns = _worst_columns(sample, problem, nats)
    chosen = _prepared(problem, columns) if len(columns) else None
    if chosen is None:
        return problem
    if problem.settings.method is Method.ROUND or problem.hessian is None:
        return chosen
    before, after = (
        solve(replace(each, weights=sample)).report.error for each in (problem, chosen)
    )
    assert before is not None, "errors under H"
    assert after is not None, "errors under H"
    bits = FLOAT_BITS * len(columns) / sample.shape[1]
    return chosen if after < before * exp(-nats * bits) else problem


def _prepared(problem: LayerProblem, columns: Columns) -> LayerProblem | None:
    if not isinstance(problem.hessian, Factored):
        return replace(problem, columns=columns)
    factored = with_floats_last(problem.hessian, columns)
    return None if factored is None else replace(problem, columns=columns, hessian=factored)


def nats_of_bit(sample: Floats, problem: LayerProblem) -> float:
    """By how much the error's logarithm falls for each bit more that a weight takes, measured.

    Of finer groups and of wider codes what saves more, both rounded to nearest.
    """
    plain, finer = _neighbours(problem.format, sample.shape[1])
    importance, before = problem.importance(), 0.0
    falls = []
    for format in (plain, *finer):
        after = float(_errors(sample, importance, format, problem.settings).sum())
        if format is plain:
            before = after
        elif before > 0 and after > 0:
            bits = format.bits_per_weight(sample.shape[1]) - plain.bits_per_weight(sample.shape[1])
            falls.append(log(before / after) / bits)
    return max([fall for fall in falls if fall > 0], default=USUAL_NATS)


def _neighbours(format: Format, columns: int) -> tuple[Format, list[Format]]:
    """A plain format like this one, and those that take some bits more."""
    group = format.group_size if format.group_size in GROUP_SIZES else min(GROUP_SIZES[:-1])
    zero = format.zero if format.row.super_block is None else ZeroKind.FIXED
    plain = make_format(format.bits, group, zero)
    wider = [row.bits for row in INTEGERS.values() if row.bits > format.bits]
    finer = [make_format(min(wider), group, zero)] if wider else []
    halves = [each for each in GROUP_SIZES if each != ROW and each < plain.group_width(columns)]
    if halves:
        finer.append(make_format(format.bits, max(halves), zero))
    return plain, finer


@dataclass(frozen=True)
class _Option:
    """Some columns of one group, and the error that goes when they are floats."""

    group: int
    columns: Columns
    saved: float


def _worst_columns(sample: Floats, problem: LayerProblem, nats: float) -> Columns:
    """Columns that save more of the error, rounded to nearest, than their bytes would elsewhere."""
    in_features = sample.shape[1]
    left = ceil(problem.settings.keep_columns * in_features)
    rest, importance = sample.copy(), problem.importance()
    if isinstance(problem.hessian, Factored):
        importance = np.where(problem.hessian.dead, np.float32(0), importance)
    chosen = np.zeros(in_features, np.bool_)
    for _ in range(ROUNDS):
        errors = _errors(rest, importance, problem.format, problem.settings)
        least = (1 - exp(-nats * FLOAT_BITS / in_features)) * float(errors.sum())
        options = list(_options(rest, importance, errors, problem, left))
        options.sort(key=lambda option: -option.saved / len(option.columns))
        groups: set[int] = set()
        for option in options:
            count = len(option.columns)
            if option.saved > least * count and option.group not in groups and count <= left:
                groups.add(option.group)
                chosen[option.columns] = True
                left -= count
        rest[:, chosen] = importance[chosen] = 0
        if not groups or not left:
            break
    return np.flatnonzero(chosen)


def _options(
    rest: Floats,
    importance: Floats,
    errors: NDArray[np.float64],
    problem: LayerProblem,
    most: int,
) -> Iterator[_Option]:
    """Of each block of inputs that shares scales, the worst few columns by two measures."""
    in_features = rest.shape[1]
    width = problem.format.block_width(in_features)
    starts = np.arange(0, in_features, width)
    before = np.add.reduceat(errors, starts)
    for measure in (np.square(rest).sum(axis=0) * (importance > 0), errors):
        ranked = [
            begin + np.argsort(-measure[begin : begin + width], kind="stable") for begin in starts
        ]
        for count in TOGETHER:
            if count > min(most, width // 2):
                break
            out = np.concatenate([order[:count] for order in ranked])
            without, weighs = rest.copy(), importance.copy()
            without[:, out] = weighs[out] = 0
            errors_left = _errors(without, weighs, problem.format, problem.settings)
            saved = before - np.add.reduceat(errors_left, starts)
            for group, order in enumerate(ranked):
                yield _Option(group, order[:count], float(saved[group]))


def _errors(
    weights: Floats, importance: Floats, format: Format, settings: SolveSettings
) -> NDArray[np.float64]:
    """Weighted squared error of each column when rounded to nearest, (columns,)."""
    parameters = fit_scales(weights, importance, format, *settings.grid)
    codes = encode_reference(weights, parameters, format)
    error = weights - decode_reference(codes, parameters, format)
    squares: NDArray[np.float64] = np.einsum("ij,ij->j", error, error, dtype=np.float64)
    return squares * importance


def with_float_columns(layer: Layer, best: Pass) -> tuple[Pass, NDArray[np.float16]]:
    """The pass with codes for its float columns, nearest to 0, and their weights beside those.

    Shapes: -> (rows, count), what is added to the decoded codes.
    """
    floats = slice(layer.coded, layer.in_features)
    places, weights = layer.factored.order[floats], layer.weights[:, floats]
    group = group_of_column(layer.format, layer.in_features)[places]
    nothing = np.zeros(weights.shape, np.float32)
    alone = np.eye(len(places), dtype=np.float32)
    grid = grid_of(best.parameters, layer.format, group)
    codes, error = best.codes.copy(), best.error.copy()
    codes[:, floats], minus_decoded = sweep(nothing, nothing, alone, grid)
    columns = as_halves(weights - best.error[:, floats] + minus_decoded)
    error[:, floats] = weights - (columns.astype(np.float32) - minus_decoded)
    return replace(best, codes=codes, error=error, loss=layer.loss(error)), columns
