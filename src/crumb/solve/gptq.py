"""GPTQ: choose codes column by column, each absorbing the errors of the columns before it.

In: a LayerProblem with H. Out: a LayerSolution. Falls back step by step and says so.
With H + damping = R R^T (R upper) and M = R / diag(R): the target of column j is
t_j = w_j + sum over k < j of e_k M[k, j], its code the nearest to t_j, e_j = w_j - decoded_j.
This is the published update (arXiv 2210.17323: w -= err U[j, :], U^T U = H^-1, R = U^-1) seen from
the column that receives, so H is never inverted; tests hold it to exact optimal-brain quantization.
Refuses a missing H.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crumb.errors import SolveError
from crumb.formats.catalog import ROW, Format
from crumb.formats.grid import GroupParameters, decode_reference, group_of_column
from crumb.kernels.gptq_sweep import SweepGrid, sweep
from crumb.solve.factor import NotPositiveDefinite, factor_in_place, restore
from crumb.solve.problem import LayerProblem, LayerSolution, SolveReport, SolveSettings
from crumb.solve.round import solve_round, zero_share
from crumb.solve.scales import fit_scales

Floats = NDArray[np.float32]

LARGEST_DAMPING = 1.0


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

    @property
    def importance(self) -> Floats:
        """What an error in each column costs by itself, (in_features,)."""
        return np.where(self.dead, 0.0, self.diagonal).astype(np.float32)

    @property
    def surplus(self) -> NDArray[np.float64]:
        """What the factored diagonal has and H has not, in the sweep's order, (in_features,)."""
        return (self.added + np.where(self.dead, self.diagonal, 0.0))[self.order]


def factor(hessian: NDArray[np.float64], tokens: int, settings: SolveSettings) -> Factored | None:
    """Factor H as the settings ask; more damping when it fails, None when nothing helps."""
    diagonal = hessian.diagonal().copy()
    dead = diagonal <= 0
    diagonal[dead] = diagonal[~dead].mean() if not dead.all() else 1.0
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


def solve_gptq(problem: LayerProblem, factored: Factored | None = None) -> LayerSolution:
    """Codes by GPTQ. `factored` may be given when several layers share an input.

    Raises: SolveError for weights that are not finite, or for a fallback in strict mode.
    """
    problem.check()
    assert problem.hessian is not None or factored is not None, "GPTQ needs statistics"
    if factored is None and problem.hessian is not None:
        factored = factor(problem.hessian, problem.tokens, problem.settings)
    if factored is None:
        _refuse_if_strict(problem, "H is not positive definite at any damping")
        solution = solve_round(problem)
        reason = "rounded to nearest: H is not positive definite at any damping"
        return replace(solution, report=replace(solution.report, fallback=reason))
    if factored.fallback:
        _refuse_if_strict(problem, factored.fallback)
    return _Sweep(problem, factored).run()


def _refuse_if_strict(problem: LayerProblem, reason: str) -> None:
    if problem.settings.strict:
        raise SolveError(
            "a fallback was needed and --strict forbids it",
            where=problem.name,
            found=reason,
            do="Calibrate on more tokens, or raise --damping",
        )


class _Sweep:
    """One matrix on its way through the blocks of columns; columns are in the sweep's order."""

    def __init__(self, problem: LayerProblem, factored: Factored) -> None:
        settings, self.format = problem.settings, problem.format
        self.factored, self.settings = factored, settings
        weights = problem.weights
        if factored.dead.any():
            weights = np.where(factored.dead, np.float32(0), weights)
        self.in_features = weights.shape[1]
        self.group = group_of_column(self.format, self.in_features)[factored.order]
        width = self.format.group_width(self.in_features)
        fit_now = settings.static_groups or width >= self.in_features
        self.block_columns = settings.block_columns if fit_now else width
        self.parameters: list[GroupParameters] = []
        if fit_now:
            parameters = fit_scales(weights, factored.importance, self.format, settings.scales)
            self.parameters.append(parameters)
        self.fit_now = fit_now
        self.weights: Floats = np.ascontiguousarray(weights[:, factored.order])
        self.error = np.zeros_like(self.weights)
        self.codes = np.empty(self.weights.shape, np.uint8)
        self.loss = self.energy = 0.0

    def run(self) -> LayerSolution:
        for begin in range(0, self.in_features, self.block_columns):
            self.block(slice(begin, min(begin + self.block_columns, self.in_features)))
        back = np.argsort(self.factored.order)
        codes = np.ascontiguousarray(self.codes[:, back])
        parameters = _join(self.parameters)
        decoded = decode_reference(codes, parameters, self.format)
        surplus = self.factored.surplus
        loss = self.loss - float(_column_squares(self.error) @ surplus)
        energy = self.energy - float(_column_squares(self.weights) @ surplus)
        report = SolveReport(
            error=max(loss, 0.0),
            energy=energy,
            zero_share=zero_share(decoded),
            damping=self.factored.damping,
            fallback=self.factored.fallback,
        )
        return LayerSolution(codes, parameters, report)

    def block(self, columns: slice) -> None:
        """Choose the codes of one block; `columns` are places in the sweep (column_in_matrix)."""
        root = self.factored.root[: columns.stop, columns]
        diagonal = root[columns].diagonal()
        unit = (root / diagonal).astype(np.float32)  # M[: stop, columns]
        weights = np.ascontiguousarray(self.weights[:, columns])
        earlier = self.error[:, : columns.start]
        start = weights + earlier @ unit[: columns.start]
        unit[columns] = inside = np.triu(unit[columns])  # below lies what is left of H
        grid = self.grid(columns, start, weights, inside)
        codes, error = sweep(start, weights, inside, grid)
        self.codes[:, columns], self.error[:, columns] = codes, error
        residual = (start - weights) + error @ inside  # (t_j - decoded_j) of each column
        square = np.square(diagonal)
        self.loss += float(_column_squares(residual) @ square)
        whole = self.weights[:, : columns.stop] @ unit
        self.energy += float(_column_squares(whole) @ square)

    def grid(self, columns: slice, start: Floats, weights: Floats, inside: Floats) -> SweepGrid:
        """The block's grid; without static groups it is fitted now to the updated weights."""
        if self.fit_now:
            return _grid(self.parameters[0], self.format, self.group[columns])
        one_group = replace(self.format, group_size=ROW)
        group = np.zeros_like(self.group[columns])
        nothing = np.zeros((len(weights), 1), np.float32)
        unrounded = SweepGrid(one_group, nothing, nothing, group)
        _, drift = sweep(start, weights, inside, unrounded, rounding=False)
        updated = weights - drift
        importance = self.factored.importance[self.factored.order][columns]
        parameters = fit_scales(updated, importance, one_group, self.settings.scales)
        self.parameters.append(parameters)
        return _grid(parameters, one_group, group)


def _column_squares(matrix: Floats) -> NDArray[np.float64]:
    """Sum of squares of each column."""
    squares: NDArray[np.float64] = np.einsum("ij,ij->j", matrix, matrix, dtype=np.float64)
    return squares


def _grid(parameters: GroupParameters, format: Format, group: NDArray[np.int32]) -> SweepGrid:
    scale = parameters.scale.astype(np.float32)
    return SweepGrid(format, scale, parameters.offset(format), np.ascontiguousarray(group))


def _join(parts: list[GroupParameters]) -> GroupParameters:
    """Parameters of consecutive groups side by side."""
    if len(parts) == 1:
        return parts[0]
    points = [part.zero_point for part in parts if part.zero_point is not None]
    minima = [part.minimum for part in parts if part.minimum is not None]
    return GroupParameters(
        np.concatenate([part.scale for part in parts], axis=1),
        np.concatenate(points, axis=1) if points else None,
        np.concatenate(minima, axis=1) if minima else None,
    )
