"""H of one input made ready for the sweep: dead columns, order, damping, factor.

In: H, the tokens behind it, the settings. Out: a Factored, shared by the layers of one input.
Raises the damping tenfold while H is not positive definite and says so; gives up at 1.
Source: facts of GPTQ (arXiv 2210.17323), act-order of its reference code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crumb.solve.factor import NotPositiveDefinite, factor_in_place, restore
from crumb.solve.problem import SolveSettings

Floats = NDArray[np.float32]

LARGEST_DAMPING = 1.0

STRIP = 128
"""Columns of M that are made at once."""


def default_damping(tokens: int, in_features: int) -> float:
    """Damping by calibration tokens per column: .01 from 8 on, .05 near 4, .1 at 2 and below."""
    per_column = tokens / in_features
    return float(np.interp(np.log2(max(per_column, 1e-9)), [1.0, 2.0, 3.0], [0.1, 0.05, 0.01]))


@dataclass
class Factored:
    """H of one input, permuted, damped and factored; shared by the layers that read the input."""

    order: NDArray[np.intp]  # column_in_matrix at each place of the sweep
    root: NDArray[np.float64]  # (in_features, in_features), R in the upper triangle
    diagonal: NDArray[np.float64]  # (in_features,) of H, in the matrix's order; dead: the mean
    dead: NDArray[np.bool_]  # (in_features,) columns that calibration never used
    damping: float  # share of the mean diagonal
    added: float  # what was added to the diagonal
    fallback: str | None
    floats: int = 0  # columns at the end of the order that are not quantized

    @cached_property
    def unit(self) -> Floats:
        """M = R / diag(R), upper with ones on its diagonal, (in_features, in_features)."""
        unit, diagonal = np.zeros(self.root.shape, np.float32), self.root.diagonal()
        for begin in range(0, len(unit), STRIP):
            columns = slice(begin, min(begin + STRIP, len(unit)))
            unit[: columns.stop, columns] = self.root[: columns.stop, columns] / diagonal[columns]
            unit[columns, columns] = np.triu(unit[columns, columns])  # below lies what is left of H
        return unit

    @cached_property
    def damped_diagonal(self) -> Floats:
        """The diagonal of H with its damping, in the sweep's order, (in_features,)."""
        return (self.diagonal[self.order] + self.added).astype(np.float32)

    @cached_property
    def coupling(self) -> Floats:
        """N = (H + damping) / its diagonal, column by column, in the sweep's order.

        Shapes: (in_features, in_features). Below R, the root still has H.
        """
        coupling = np.empty(self.root.shape, np.float32)
        for begin in range(0, len(coupling), STRIP):
            rows = slice(begin, min(begin + STRIP, len(coupling)))
            before = self.root[rows, :begin]
            coupling[rows, :begin], coupling[:begin, rows] = before, before.T
            corner = np.tril(self.root[rows, rows], -1)
            coupling[rows, rows] = corner + corner.T
        coupling[np.diag_indices(len(coupling))] = self.damped_diagonal
        coupling /= self.damped_diagonal
        return coupling

    @cached_property
    def importance(self) -> Floats:
        """What an error in each column costs, in the matrix's order, (in_features,).

        Between H_jj, the cost if nothing absorbs the error, and R_jj^2, the cost if all columns
        still to come do: their geometric mean. (2- and 3-bit layers of novella-7m: 6 to 20 % less
        error than H_jj or R_jj^2 alone.)
        """
        absorbed = np.empty_like(self.diagonal)
        absorbed[self.order] = np.square(self.root.diagonal())
        cost = np.sqrt(self.diagonal * absorbed)
        return np.where(self.dead, 0.0, cost).astype(np.float32)

    @property
    def surplus(self) -> NDArray[np.float64]:
        """What the factored diagonal has and H has not, in the sweep's order, (in_features,)."""
        return (self.added + np.where(self.dead, self.diagonal, 0.0))[self.order]


def with_floats_last(factored: Factored, columns: NDArray[np.intp]) -> Factored | None:
    """The same H with some columns at the end of the order, ascending: they answer for all others.

    Shapes: columns (count,). None where this order has no factor in f64.
    """
    others = factored.order[~np.isin(factored.order, columns)]
    order = np.concatenate([others, columns])
    place = np.argsort(factored.order)[order]  # of each column in the root that is there
    root = np.empty_like(factored.root)
    for begin in range(0, len(root), STRIP):
        rows = place[begin : begin + STRIP, None]
        root[begin : begin + STRIP] = factored.root[
            np.maximum(rows, place), np.minimum(rows, place)
        ]
    root[np.diag_indices(len(root))] = factored.diagonal[order] + factored.added
    try:
        factor_in_place(root)
    except NotPositiveDefinite:
        return None
    return replace(factored, order=order, root=root, floats=len(columns))


def factor(hessian: NDArray[np.float64], tokens: int, settings: SolveSettings) -> Factored | None:
    """Factor H as the settings ask; more damping when it fails, None when nothing helps.

    A dead column gets the mean of the others, not the paper's 1: in small H that 1 would rule the
    damping (3-bit g32, H near 1e-4, one column of 96 dead: 1.3 times the error).
    """
    diagonal = hessian.diagonal().copy()
    dead = diagonal <= 0
    if dead.all():
        return None
    diagonal[dead] = diagonal[~dead].mean()
    order = np.arange(len(diagonal))
    if settings.act_order:
        order = np.argsort(-diagonal, kind="stable")
    root = hessian[np.ix_(order, order)]
    asked = settings.damping
    if asked is None:
        asked = default_damping(tokens, len(diagonal))
    damping, fallback, places = asked, None, np.diag_indices(len(root))
    while True:
        added = damping * float(diagonal.mean())
        root[places] = diagonal[order] + added
        try:
            factor_in_place(root)
        except NotPositiveDefinite:
            restore(root, diagonal[order])
            damping = max(damping * 10, 1e-4)
            fallback = f"damping raised from {asked:g} to {damping:g}"
            if damping > LARGEST_DAMPING:
                return None
            continue
        return Factored(order, root, diagonal, dead, damping, added, fallback)
