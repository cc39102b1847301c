"""One matrix on its way through the column sweep of GPTQ, block by block.

In: weights, the factored H of their input, the grid of each group (or none: fitted on the way).
Out: a Pass: codes, targets, errors and each row's loss. Columns are in the sweep's order here;
column_in_matrix counts all of them, kernels/gptq_sweep.py sees only its column_in_block.
Refuses nothing: weights and H were checked before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crumb.formats.catalog import ROW, Format
from crumb.formats.grid import GroupParameters, choose_rows, group_of_column
from crumb.kernels.gptq_sweep import SweepGrid, sweep
from crumb.kernels.threads import over_rows
from crumb.solve.factored import Factored
from crumb.solve.problem import SolveSettings, join_parameters
from crumb.solve.product import product
from crumb.solve.scales import fit_scales

Floats = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)

NO_GROUP = -1
"""Of a float column."""

ENERGY_COLUMNS = 512
"""Columns whose share of tr(W H W^T) is computed at once."""


@dataclass(frozen=True)
class Pass:
    """What one sweep chose; (rows, columns) arrays are in the sweep's order of columns."""

    codes: NDArray[np.uint8]  # (rows, columns)
    targets: Floats  # (rows, columns) what each code was nearest to
    error: Floats  # (rows, columns) weights minus decoded
    loss: NDArray[np.float64]  # (rows,) error under the damped H
    parameters: GroupParameters  # in the matrix's order of groups

    def better(self, other: Pass) -> Pass:
        """Row by row the one with the lower loss; rows do not depend on each other."""
        mine = self.loss <= other.loss
        column = mine[:, None]
        return Pass(
            np.where(column, self.codes, other.codes),
            np.where(column, self.targets, other.targets),
            np.where(column, self.error, other.error),
            np.where(mine, self.loss, other.loss),
            choose_rows(mine, self.parameters, other.parameters),
        )


class Layer:
    """A matrix in the sweep's order of columns, ready to be swept."""

    def __init__(
        self, weights: Floats, factored: Factored, format: Format, settings: SolveSettings
    ) -> None:
        self.factored, self.format, self.settings = factored, format, settings
        if factored.dead.any():
            weights = np.where(factored.dead, np.float32(0), weights)
        self.in_features = weights.shape[1]
        self.group = group_of_column(format, self.in_features)[factored.order]
        self.weights: Floats = take_columns(weights, factored.order)
        self.squares = np.square(factored.root.diagonal())
        self.coded = self.in_features - factored.floats  # columns of the sweep that have codes
        self.group[self.coded :] = NO_GROUP
        self._back = np.argsort(factored.order)

    def in_matrix_order(self, swept: NDArray[Number]) -> NDArray[Number]:
        """Columns put back where the matrix has them."""
        return take_columns(swept, self._back)

    def sweep(self, parameters: GroupParameters | None) -> Pass:
        """Choose every code. Without parameters each group is fitted when its turn comes."""
        rows = len(self.weights)
        width = self.format.group_width(self.in_features)
        step = self.settings.block_columns if parameters is not None else width
        codes = np.empty(self.weights.shape, np.uint8)
        targets, error = np.empty_like(self.weights), np.zeros_like(self.weights)
        loss, fitted = np.zeros(rows, np.float64), []
        for begin in range(0, self.coded, step):
            columns = slice(begin, min(begin + step, self.coded))
            inside = self.factored.unit[columns, columns]
            weights = np.ascontiguousarray(self.weights[:, columns])
            start = weights + product(error[:, :begin], self.factored.unit[:begin, columns])
            if parameters is not None:
                grid = grid_of(parameters, self.format, self.group[columns])
            else:
                fitted.append(self.fit(columns, start, weights, inside))
                one_group = np.zeros(len(inside), np.int32)
                grid = grid_of(fitted[-1], self.format, one_group)
            codes[:, columns], error[:, columns] = sweep(start, weights, inside, grid)
            residual = (start - weights) + product(error[:, columns], inside)
            targets[:, columns] = (weights - error[:, columns]) + residual
            loss += np.square(residual, dtype=np.float64) @ self.squares[columns]
        codes[:, self.coded :] = 0
        self.answer(error)
        targets[:, self.coded :] = self.weights[:, self.coded :] - error[:, self.coded :]
        return Pass(codes, targets, error, loss, parameters or join_parameters(fitted, axis=1))

    def answer(self, error: Floats) -> None:
        """Float columns take up the errors of all others; their part of the loss is 0 then."""
        floats = slice(self.coded, self.in_features)
        if self.coded == self.in_features:
            return
        unit = self.factored.unit
        error[:, floats] = 0
        drift = product(error[:, : self.coded], unit[: self.coded, floats])
        for column in range(self.coded, self.in_features):  # back along the last rows of R
            before = slice(self.coded, column)
            own = error[:, before] @ unit[before, column]
            error[:, column] = -(drift[:, column - self.coded] + own)

    def fit(
        self, columns: slice, start: Floats, weights: Floats, inside: Floats
    ) -> GroupParameters:
        """Fit one group to its weights as all columns before it have updated them."""
        one_group = replace(self.format, group_size=ROW)
        nothing = np.zeros((len(weights), 1), np.float32)
        unrounded = SweepGrid(one_group, nothing, nothing, np.zeros(len(inside), np.int32))
        _, drift = sweep(start, weights, inside, unrounded, rounding=False)
        importance = self.factored.importance[self.factored.order][columns]
        return fit_scales(weights - drift, importance, one_group, *self.settings.grid)

    def fit_groups(self, targets: Floats) -> GroupParameters:
        """Fit every group to what its codes are to be nearest to, in the matrix's order."""
        floats, importance = self.factored.order[self.coded :], self.factored.importance
        if len(floats):
            targets, importance = targets.copy(), importance.copy()
            targets[:, floats] = importance[floats] = 0
        return fit_scales(targets, importance, self.format, *self.settings.grid)

    def loss(self, error: Floats) -> NDArray[np.float64]:
        """Each row's error under the damped H, (rows,)."""
        loss = np.zeros(len(error), np.float64)
        for begin in range(0, self.in_features, ENERGY_COLUMNS):
            columns = slice(begin, min(begin + ENERGY_COLUMNS, self.in_features))
            unit = self.factored.unit[: columns.stop, columns]
            whole = product(error[:, : columns.stop], unit)
            loss += np.square(whole, dtype=np.float64) @ self.squares[columns]
        return loss

    def energy(self) -> float:
        """tr(W H W^T): the mean squared output of the layer."""
        total = 0.0
        for begin in range(0, self.in_features, ENERGY_COLUMNS):
            columns = slice(begin, min(begin + ENERGY_COLUMNS, self.in_features))
            unit = self.factored.unit[: columns.stop, columns]
            whole = product(self.weights[:, : columns.stop], unit)
            total += float(column_squares(whole) @ self.squares[columns])
        return total - float(column_squares(self.weights) @ self.factored.surplus)

    def zero_share(self, chosen: Pass) -> float:
        """Share of weights that decode to 0: those whose error is the weight itself."""
        return float(np.count_nonzero(chosen.error == self.weights) / self.weights.size)

    def column_errors(self, chosen: Pass) -> NDArray[np.float64]:
        """Squared error of each column times H_jj, in the matrix's order, (in_features,)."""
        squares = self.in_matrix_order(column_squares(chosen.error)[None])[0]
        return np.where(self.factored.dead, 0.0, squares * self.factored.diagonal)

    def true_error(self, chosen: Pass) -> float:
        """tr(D H D^T), damping taken off."""
        added = float(column_squares(chosen.error) @ self.factored.surplus)
        return max(float(chosen.loss.sum()) - added, 0.0)


def take_columns(matrix: NDArray[Number], order: NDArray[np.intp]) -> NDArray[Number]:
    """The columns of a matrix in another order, contiguous."""
    taken = np.empty_like(matrix, order="C")

    def work(rows: slice) -> None:
        np.take(matrix[rows], order, axis=1, out=taken[rows], mode="clip")

    over_rows(len(matrix), work)
    return taken


def column_squares(matrix: Floats) -> NDArray[np.float64]:
    """Sum of squares of each column."""
    squares: NDArray[np.float64] = np.einsum("ij,ij->j", matrix, matrix, dtype=np.float64)
    return squares


def grid_of(parameters: GroupParameters, format: Format, group: NDArray[np.int32]) -> SweepGrid:
    """The grid of some columns, whose groups are given."""
    return SweepGrid(
        format, parameters.group_scale(), parameters.offset(format), np.ascontiguousarray(group)
    )
