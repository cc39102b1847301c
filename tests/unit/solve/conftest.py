"""Problems for the solvers, and the exact oracle they are held to.

In: sizes, a Format, settings. Out: a LayerProblem with correlated inputs; the oracle's verdict.
The oracle is optimal brain quantization as published, with the inverse of H written out in f64.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from crumb.formats.catalog import Format, ZeroKind, find_row
from crumb.formats.grid import GroupParameters, decode_columns, decode_reference, encode_columns
from crumb.solve.problem import LayerProblem, Scales
from crumb.solve.scales import fit_scales

UNIT = 2.0**-24  # half a unit in the last place of f32 at 1: the error of one rounding


@pytest.fixture
def make_problem():
    """make_problem(rows, in_features, format, settings, seed=, tokens_per_column=)."""
    return _make_problem


@pytest.fixture
def any_format():
    """any_format(bits, group_size, zero); groups may be smaller than the catalog's."""
    return lambda bits, group_size, zero: Format(find_row(bits), group_size, ZeroKind(zero))


def _make_problem(rows, in_features, format, settings, seed=0, tokens_per_column=8):
    """Inputs are a chain whose coupling falls from .95 to .3, so no two blocks of H are alike."""
    rng = np.random.default_rng([seed, rows, in_features])
    tokens = tokens_per_column * in_features
    inputs = rng.standard_normal((tokens, in_features))
    coupling = np.linspace(0.95, 0.3, in_features)
    for column in range(1, in_features):
        inputs[:, column] += coupling[column] * inputs[:, column - 1]
    inputs *= rng.uniform(0.5, 2, in_features)
    weights = (rng.standard_t(5, (rows, in_features)) * 0.05).astype(np.float32)
    hessian = inputs.T @ inputs / tokens
    return LayerProblem("layer.weight", weights, hessian, tokens, format, settings)


def upper_root(matrix):
    """R upper triangular with matrix = R R^T, by one Cholesky of the flipped matrix."""
    return np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]


def trace(matrix, hessian):
    """tr(M H M^T) in f64."""
    return float(np.einsum("ij,jk,ik->", matrix, hessian, matrix, optimize=True))


@dataclass
class Direct:
    """What a solution costs, computed directly in f64, and how far f32 arithmetic may stray."""

    error: float
    energy: float
    error_bound: float
    energy_bound: float
    target_bound: np.ndarray  # (rows, in_features) in the sweep's order


@pytest.fixture
def direct():
    """direct(problem, solution): tr(D H D^T), tr(W H W^T) and their bounds."""
    return _direct


def damped(problem, damping):
    """H as GPTQ factors it: dead columns get the mean of the others, then all get the damping."""
    diagonal = problem.hessian.diagonal()
    mean = diagonal[diagonal > 0].mean()
    return problem.hessian + np.diag(np.where(diagonal > 0, 0, mean) + damping * mean)


def _direct(problem, solution, order=None):
    """The cost of a solution, and bounds on its f32 evaluation.

    A dot product of n terms in f32 errs by at most (n + 1) UNIT times the sum of magnitudes; four
    more roundings cover M, e_k, the sum with w_j and the difference to it. The residual of a
    column is such a sum, and its square is weighted by R_jj^2. What damping adds is taken off
    again at two roundings of each e_k^2. Rounding evaluates both products with H in f32.
    """
    count = problem.weights.shape[1]
    order = np.arange(count) if order is None else order
    hessian = problem.hessian[np.ix_(order, order)]
    decoded = decode_reference(solution.codes, solution.parameters, problem.format)
    weights = problem.weights.astype(np.float64)[:, order]
    off = weights - decoded[:, order]
    cost = trace(off, hessian), trace(weights, hessian)
    if solution.report.damping is None:
        roundings = (2 * count + len(weights) + 5) * UNIT
        bounds = [roundings * trace(np.abs(matrix), np.abs(hessian)) for matrix in (off, weights)]
        return Direct(*cost, *bounds, np.zeros_like(off))
    full = damped(problem, solution.report.damping)[np.ix_(order, order)]
    surplus = full.diagonal() - hessian.diagonal()
    alive = (hessian.diagonal() > 0)[None]  # GPTQ takes the weights of dead columns for 0
    root = upper_root(full)
    unit, square = root / root.diagonal(), np.square(root.diagonal())
    roundings = (count + 5) * UNIT
    seen = np.where(alive, off, decoded[:, order])
    bounds, slips = [], []
    for matrix, plus in ((seen, np.abs(weights * alive)), (weights * alive, 0)):
        slip = roundings * (np.abs(matrix) @ np.abs(unit) + plus)
        bound = np.sum((2 * np.abs(matrix @ unit) * slip + slip**2) * square)
        bounds.append(bound + 2 * UNIT * np.sum(matrix**2 @ surplus))
        slips.append(slip)
    return Direct(*cost, *bounds, slips[0])


@pytest.fixture
def assert_is_exact():
    """assert_is_exact(problem, solution): the oracle's verdict."""
    return _assert_is_exact


def _assert_is_exact(problem, solution):
    """Hold codes, scales and error to exact optimal brain quantization.

    A code may differ from the oracle's only where its target is a tie within f32 rounding; the
    oracle then follows the solution, so later columns are judged on the same past.
    """
    settings = problem.settings
    diagonal = problem.hessian.diagonal()
    count = len(diagonal)
    order = np.argsort(-diagonal, kind="stable") if settings.act_order else np.arange(count)
    measured = _direct(problem, solution, order)
    oracle = _Oracle(problem, solution, order, measured.target_bound)
    for place, column in enumerate(order):
        oracle.step(place, column)
    assert oracle.ties <= max(2, solution.codes.size // 1000), "ties are rare"
    assert oracle.other_groups <= max(1, solution.parameters.scale.size // 100)
    assert abs(oracle.loss - measured.error) <= measured.error_bound
    assert abs(solution.report.error - measured.error) <= measured.error_bound


class _Oracle:
    """Optimal brain quantization, column by column, on all remaining weights, without blocks."""

    def __init__(self, problem, solution, order, target_bound):
        self.problem, self.solution, self.target_bound = problem, solution, target_bound
        self.format, self.settings = problem.format, problem.settings
        self.weights = problem.weights.astype(np.float64)[:, order]  # in the sweep's order
        self.count = self.weights.shape[1]
        self.width = self.format.group_width(self.count)
        self.added = solution.report.damping * problem.hessian.diagonal().mean()
        full = damped(problem, solution.report.damping)[np.ix_(order, order)]
        # The oracle's own f64 error must vanish beside one rounding of f32.
        condition = np.trace(full) / self.added  # at least the true one
        assert condition * self.count * 2.0**-52 < UNIT / 16
        self.order, self.root = order, upper_root(full)
        self.inverse = np.linalg.inv(full)  # of the columns still to come, in the sweep's order
        self.loss, self.ties, self.other_groups = 0.0, 0, 0
        # Between the cost of an error alone, H_jj, and with all later columns absorbing it, R_jj^2.
        absorbed = np.empty(self.count)
        absorbed[order] = np.square(upper_root(full).diagonal())
        importance = np.sqrt(problem.hessian.diagonal() * absorbed).astype(np.float32)
        self.importance, scales = importance, self.settings.scales
        self.dynamic = not self.settings.static_groups and self.width < self.count
        refitted = scales is Scales.SEARCH and self.settings.static_groups and self.settings.refits
        if not (self.dynamic or refitted):
            fitted = fit_scales(problem.weights, importance, self.format, scales)
            self.same_parameters(fitted, slice(None), exact=scales is Scales.MINMAX)

    def importance(self):
        """Geometric mean of an error's cost unabsorbed (H_jj) and absorbed (R_jj^2)."""
        absorbed = np.empty(self.count)
        absorbed[self.order] = np.square(self.root.diagonal())
        return np.sqrt(self.problem.hessian.diagonal() * absorbed).astype(np.float32)

    def same_parameters(self, fitted, groups, exact):
        """Compare fitted parameters with the solution's, and go on with the solution's."""
        given = self.solution.parameters
        differ = np.zeros(fitted.scale.shape, bool)
        for name in ("scale", "zero_point", "minimum"):
            one, other = getattr(fitted, name), getattr(given, name)
            assert (one is None) == (other is None)
            if one is not None:
                differ |= one != other[:, groups]
        assert not (exact and differ.any())
        self.other_groups += int(differ.sum())

    def fit_group(self, column):
        """Fit the group that starts here to weights updated by all earlier columns."""
        group = column // self.width
        span = slice(column, min(column + self.width, self.count))
        one_group = Format(self.format.row, 0, self.format.zero)
        now = self.weights[:, span].astype(np.float32)
        fitted = fit_scales(now, self.importance[span], one_group, self.settings.scales)
        self.same_parameters(fitted, slice(group, group + 1), exact=False)

    def step(self, place, column):
        """Choose one column's codes, then update every remaining weight and the inverse."""
        if self.dynamic and column % self.width == 0:
            self.fit_group(column)
        given: GroupParameters = self.solution.parameters
        group = column // self.width
        scale = given.scale[:, group].astype(np.float32)
        offset = given.offset(self.format)[:, group]
        zero, largest = self.format.zero, self.format.row.largest_code
        target = self.weights[:, place].copy()
        own = encode_columns(target.astype(np.float32), scale, offset, largest, zero)
        codes = self.solution.codes[:, column]
        differ = own != codes
        if differ.any():
            base = offset if zero is ZeroKind.MINIMUM else 0
            quotient = (target - base)[differ] / scale[differ]
            # The quotient's own two roundings, and those of the two targets compared.
            slip = 2 * self.target_bound[differ, place] / np.abs(scale[differ])
            slip += 4 * UNIT * np.abs(quotient)
            assert (np.abs(quotient - np.floor(quotient) - 0.5) <= slip).all(), (
                f"column {column}: codes {codes[differ]}, exactly {own[differ]}"
            )
            assert (np.abs(own[differ].astype(int) - codes[differ]) == 1).all()
            self.ties += int(differ.sum())
        decoded = decode_columns(codes, scale, offset, zero).astype(np.float64)
        first = self.inverse[0] / self.inverse[0, 0]
        # d^T H d of this column, the rest free; less its own share of the damping.
        self.loss += float(np.sum((target - decoded) ** 2) / self.inverse[0, 0])
        original = self.problem.weights[:, column].astype(np.float64)
        self.loss -= self.added * float(np.sum((original - decoded) ** 2))
        self.weights[:, place:] -= np.outer(target - decoded, first)
        self.inverse = self.inverse[1:, 1:] - np.outer(self.inverse[1:, 0], first[1:])
