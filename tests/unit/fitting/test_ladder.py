"""What budgets choose from: formats that a solver can choose codes of and a matrix can have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crumb.checkpoints.opening import open_checkpoint
from crumb.embedded import MODELS
from crumb.fitting.ladder import NARROW, SMALLEST, SUPER_BLOCKS, WIDE, ladder, possible
from crumb.formats.catalog import Format
from crumb.formats.grid import decode_reference
from crumb.solve.factored import factor
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import AS_PUBLISHED, LayerProblem, SolveSettings
from crumb.solve.tables import with_own_table

USUAL = SolveSettings(refits=1, refinements=0)
WIDTH = 256


def test_groups_that_are_fitted_one_after_the_other_have_no_super_blocks() -> None:
    assert ladder(USUAL) == (*SMALLEST, *SUPER_BLOCKS, *WIDE)
    assert ladder(AS_PUBLISHED) == (*NARROW, *WIDE)
    assert ladder(replace(USUAL, static_groups=False, act_order=False)) == (*NARROW, *WIDE)


def test_a_matrix_has_formats_whose_groups_it_fills() -> None:
    assert list(possible(128, USUAL)) == list(ladder(USUAL))
    assert {each.group_size for each in possible(96, USUAL)} == {32, 64}
    assert list(possible(48, USUAL)) == list(SUPER_BLOCKS)
    assert not list(possible(16, USUAL))


@pytest.mark.parametrize("format", SUPER_BLOCKS, ids=lambda format: format.name)
def test_a_super_block_loses_less_than_whole_numbers_of_as_many_bytes(format: Format) -> None:
    """In a matrix of a real model, solved as the pass solves it: why the others are not offered."""
    checkpoint = open_checkpoint(MODELS["novella-7m"])
    weights = checkpoint.tensors.read_float("model.layers.1.mlp.gate_proj.weight")[:64]
    inputs = np.random.default_rng(0).standard_normal((1024, WIDTH)) @ np.diag(
        np.linspace(0.2, 2.0, WIDTH)
    )
    hessian = inputs.T @ inputs / len(inputs)
    factored = factor(hessian, len(inputs), USUAL)

    def error(each: Format) -> float:
        problem = with_own_table(LayerProblem("w", weights, factored, len(inputs), each, USUAL))
        solution = solve_gptq(problem)
        change = weights - decode_reference(solution.codes, solution.parameters, problem.format)
        return float(np.einsum("ij,jk,ik->", change, hessian, change))

    size = format.row_bits(WIDTH)
    rivals = [each for each in NARROW if each.bits == format.bits and each.row_bits(WIDTH) >= size]
    assert rivals
    assert all(error(format) < error(each) for each in rivals)
