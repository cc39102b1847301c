"""H of an input: its damping, and what an error in each of its columns costs."""

from dataclasses import replace

import numpy as np
import pytest

from crumb.formats.catalog import ZeroKind, make_format
from crumb.solve.factored import default_damping, factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import SolveSettings

INT3 = make_format(3, 32, ZeroKind.VARIABLE)


@pytest.mark.parametrize(
    ("tokens_per_column", "damping"),
    [(0, 0.1), (0.5, 0.1), (2, 0.1), (4, 0.05), (8, 0.01), (1000, 0.01)],
)
def test_damping_follows_the_tokens_per_column(tokens_per_column, damping, make_problem):
    # The interpolation between two table values costs a few roundings of f64.
    asked = default_damping(int(tokens_per_column * 64), 64)
    assert asked == pytest.approx(damping, rel=1e-14, abs=0)
    problem = make_problem(4, 64, INT3, SolveSettings())
    solution = solve_gptq(replace(problem, tokens=int(tokens_per_column * 64)))
    assert solution.report.damping == asked
    assert solution.report.fallback is None


def test_damping_falls_steadily_between_the_table_values():
    dampings = [default_damping(tokens, 64) for tokens in range(128, 513)]
    assert dampings == sorted(dampings, reverse=True)
    assert len(set(dampings)) == len(dampings)


def test_damping_that_is_asked_for_is_used(make_problem):
    problem = make_problem(4, 64, INT3, SolveSettings(damping=0.37))
    assert solve_gptq(problem).report.damping == 0.37
    factored = factor(problem.hessian, problem.tokens, problem.settings)
    assert factored.added == 0.37 * problem.hessian.diagonal().mean()


@pytest.mark.parametrize("act_order", [True, False])
def test_importance_is_between_an_error_alone_and_one_that_later_columns_absorb(
    act_order, make_problem
):
    settings = SolveSettings(damping=0.05, act_order=act_order)
    problem = make_problem(1, 40, INT3, settings)
    hessian = problem.hessian.copy()
    dead = [3, 39]
    hessian[dead], hessian[:, dead] = 0, 0
    factored = factor(hessian, problem.tokens, settings)
    diagonal = hessian.diagonal()
    damped = hessian + 0.05 * diagonal[diagonal > 0].mean() * np.eye(40)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(40)
    alive = [column for column in order if column not in dead]
    for place, column in enumerate(alive):
        # Absorbed: what is left of the damped H_jj once all later columns are free to adapt.
        later = alive[place:]
        absorbed = 1 / np.linalg.inv(damped[np.ix_(later, later)])[0, 0]
        # f32 rounds the root once; the two f64 routes to it differ far less.
        expected = np.sqrt(diagonal[column] * absorbed)
        assert factored.importance[column] == pytest.approx(expected, rel=2.0**-23, abs=0)
    assert factored.importance[dead].tolist() == [0, 0]


def test_the_hessian_is_left_as_it_was(make_problem):
    problem = make_problem(1, 40, INT3, SolveSettings())
    before = problem.hessian.tobytes()
    factor(problem.hessian, problem.tokens, problem.settings)
    assert problem.hessian.tobytes() == before
