"""Codes and scales refined under all of H: never worse, and best where nothing can move alone."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from crumb.formats.catalog import CATALOG, ZeroKind, make_format
from crumb.formats.grid import decode_reference
from crumb.solve.factored import factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import SolveSettings
from crumb.solve.sweep import Layer

FIXED = ZeroKind.FIXED


def damped(problem, factored):
    return problem.hessian + factored.added * np.eye(len(problem.hessian))


def losses(problem, solution, hessian):
    """Each row's error under H in f64, (rows,)."""
    decoded = decode_reference(solution.codes, solution.parameters, problem.format)
    error = (problem.weights - decoded).astype(np.float64)
    return np.einsum("ij,jk,ik->i", error, hessian, error)


@pytest.mark.parametrize("act_order", [True, False])
def test_coupling_is_the_damped_h_over_its_diagonal_in_the_sweeps_order(act_order, make_problem):
    problem = make_problem(1, 300, make_format(3, 64, FIXED), SolveSettings(act_order=act_order))
    factored = factor(problem.hessian, problem.tokens, problem.settings)
    ordered = damped(problem, factored)[np.ix_(factored.order, factored.order)]
    expected = ordered / ordered.diagonal()
    # One rounding of the entry, one of the diagonal, one of the quotient.
    assert np.abs(factored.coupling - expected).max() <= 4 * 2.0**-24 * np.abs(expected).max()


@pytest.mark.parametrize("zero", ZeroKind)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_round_lowers_the_error_and_no_row_gets_worse(bits, zero, make_problem):
    problem = make_problem(24, 160, make_format(bits, 64, zero), SolveSettings(refinements=0))
    hessian = damped(problem, factor(problem.hessian, problem.tokens, problem.settings))
    by_round = []
    for rounds in (0, 1, 2):
        settings = replace(problem.settings, refinements=rounds)
        solution = solve_gptq(replace(problem, settings=settings))
        by_round.append(losses(problem, solution, hessian))
    for before, after in pairwise(by_round):
        assert (after <= before * (1 + 1e-4)).all()  # losses are compared in f32
        assert after.sum() < before.sum()
    assert by_round[1].sum() < 0.99 * by_round[0].sum()


def test_in_the_end_no_code_alone_can_be_changed_for_a_smaller_error(make_problem):
    settings = SolveSettings(refinements=40)
    problem = make_problem(4, 48, make_format(2, 32, FIXED), settings)
    hessian = damped(problem, factor(problem.hessian, problem.tokens, settings))
    solution = solve_gptq(problem)
    least = losses(problem, solution, hessian)
    for column in range(48):
        for code in range(4):
            codes = solution.codes.copy()
            codes[:, column] = code
            changed = losses(problem, replace(solution, codes=codes), hessian)
            assert (changed >= least * (1 - 1e-5)).all()


def test_in_the_end_no_scale_alone_can_be_changed_for_a_smaller_error(make_problem):
    settings = SolveSettings(refinements=40)
    problem = make_problem(4, 96, make_format(3, 32, FIXED), settings)
    hessian = damped(problem, factor(problem.hessian, problem.tokens, settings))
    solution = solve_gptq(problem)
    least = losses(problem, solution, hessian)
    for group in range(3):
        for towards in (np.inf, -np.inf):
            scale = solution.parameters.scale.copy()
            scale[:, group] = np.nextafter(scale[:, group], np.float16(towards))
            moved = replace(solution, parameters=replace(solution.parameters, scale=scale))
            assert (losses(problem, moved, hessian) >= least * (1 - 1e-5)).all()


@pytest.mark.parametrize("name", ["q3_k", "q4_k", "super3"])
def test_super_blocks_are_refined_in_codes_and_scales(name, make_problem):
    format = CATALOG[name].only_format()
    problem = make_problem(6, 256, format, SolveSettings(refinements=0))
    hessian = damped(problem, factor(problem.hessian, problem.tokens, problem.settings))
    plain = solve_gptq(problem)
    refined = solve_gptq(replace(problem, settings=SolveSettings(refinements=2)))
    sub_scale, block = refined.parameters.sub_scale, format.row.super_block
    assert (refined.parameters.scale != plain.parameters.scale).any()
    assert block.lowest <= sub_scale.min() <= sub_scale.max() <= block.highest
    assert losses(problem, refined, hessian).sum() < losses(problem, plain, hessian).sum()


@pytest.mark.parametrize("name", ["q3_k", "super2", "super3"])
def test_in_the_end_no_sub_scale_alone_can_be_changed_for_a_smaller_error(name, make_problem):
    format, settings = CATALOG[name].only_format(), SolveSettings(refinements=40)
    problem = make_problem(4, 256, format, settings)
    hessian = damped(problem, factor(problem.hessian, problem.tokens, settings))
    solution, block = solve_gptq(problem), format.row.super_block
    least = losses(problem, solution, hessian)
    for group in range(format.groups(256)):
        for step in (-1, 1):
            sub_scale = solution.parameters.sub_scale.astype(int)
            sub_scale[:, group] = np.clip(sub_scale[:, group] + step, block.lowest, block.highest)
            moved = replace(solution.parameters, sub_scale=sub_scale.astype(np.int8))
            allowed = (sub_scale[:, group] != 0) | (solution.parameters.sub_scale[:, group] == 0)
            worse = losses(problem, replace(solution, parameters=moved), hessian)
            assert (worse >= least * (1 - 1e-5))[allowed].all()


def test_the_report_has_the_error_that_is_left(make_problem):
    problem = make_problem(8, 128, make_format(3, 64, FIXED), SolveSettings(refinements=2))
    solution = solve_gptq(problem)
    direct = losses(problem, solution, problem.hessian).sum()
    assert solution.report.error == pytest.approx(direct, rel=1e-4)


def test_the_loss_of_a_pass_is_that_of_its_errors(make_problem):
    problem = make_problem(5, 600, make_format(3, 64, FIXED), SolveSettings(refinements=0))
    factored = factor(problem.hessian, problem.tokens, problem.settings)
    layer = Layer(problem.weights, factored, problem.format, problem.settings)
    best = layer.sweep(layer.fit_groups(problem.weights))
    assert layer.loss(best.error) == pytest.approx(best.loss, rel=1e-4)
