"""GPTQ against exact optimal brain quantization, and proof that the comparison notices slips.

The oracle (conftest.py) inverts H, has no blocks and updates every remaining weight at each column.
"""

import numpy as np
import pytest
from exhaustive import every

from crumb.formats.catalog import ZeroKind
from crumb.solve import sweep as sweep_module
from crumb.solve.gptq import solve_gptq
from crumb.solve.problem import AS_PUBLISHED, Scales, SolveSettings
from crumb.solve.round import solve_round

ORDERS = {
    "act order, static groups": {"act_order": True, "static_groups": True},
    "stored order, static groups": {"act_order": False, "static_groups": True},
    "stored order, groups on the way": {"act_order": False, "static_groups": False},
}

LAYERS = {
    # rows, in_features, bits, group size
    "tiny": (5, 7, 2, 3),
    "small": (16, 24, 4, 8),
    "two blocks": (24, 200, 3, 32),
    "three blocks": (6, 260, 2, 64),
}


@pytest.mark.parametrize(
    ("layer", "order", "scales", "zero"), every(LAYERS, ORDERS, Scales, ZeroKind, together=2)
)
def test_codes_scales_and_error_are_those_of_exact_optimal_brain_quantization(
    layer, order, scales, zero, make_problem, any_format, assert_is_exact
):
    rows, in_features, bits, group_size = LAYERS[layer]
    settings = SolveSettings(refinements=0, scales=scales, damping=0.01, refits=0, **ORDERS[order])
    problem = make_problem(rows, in_features, any_format(bits, group_size, zero), settings)
    assert_is_exact(problem, solve_gptq(problem))


@pytest.mark.parametrize("static_groups", [True, False])
@pytest.mark.parametrize("zero", list(ZeroKind))
def test_a_group_of_the_whole_row_is_exact_in_any_order(
    static_groups, zero, make_problem, any_format, assert_is_exact
):
    settings = SolveSettings(refinements=0, damping=0.01, refits=0, static_groups=static_groups)
    problem = make_problem(8, 150, any_format(4, 0, zero), settings)
    assert_is_exact(problem, solve_gptq(problem))


@pytest.mark.parametrize("block_columns", [1, 7, 64, 1000])
def test_the_size_of_the_blocks_changes_nothing(
    block_columns, make_problem, any_format, assert_is_exact
):
    settings = SolveSettings(refinements=0, damping=0.01, refits=0, block_columns=block_columns)
    problem = make_problem(8, 150, any_format(3, 32, "variable"), settings)
    assert_is_exact(problem, solve_gptq(problem))


@pytest.mark.parametrize("zero", list(ZeroKind))
@pytest.mark.parametrize("act_order", [True, False])
def test_codes_are_exact_for_scales_that_were_refitted(
    act_order, zero, make_problem, any_format, assert_is_exact
):
    settings = SolveSettings(refinements=0, damping=0.01, act_order=act_order)
    assert settings.refits > 0
    problem = make_problem(24, 200, any_format(3, 32, zero), settings)
    assert_is_exact(problem, solve_gptq(problem))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_gptq_as_published_is_exact_at_every_width(bits, make_problem, any_format, assert_is_exact):
    problem = make_problem(8, 150, any_format(bits, 32, "variable"), AS_PUBLISHED)
    assert_is_exact(problem, solve_gptq(problem))


# ---- The comparison notices wrong indices --------------------------------------------------------


def local_factor(patch):
    """The factor is read with column_in_block where column_in_matrix is meant."""
    first, sweep = [], sweep_module.sweep

    def mixed(start, weights, factor, grid, rounding=True):
        first.append(factor)
        return sweep(start, weights, first[0][: len(factor), : len(factor)], grid, rounding)

    patch.setattr(sweep_module, "sweep", mixed)


def local_groups(patch):
    """The group of a column is looked up by column_in_block."""
    first, grid = [], sweep_module.grid_of

    def mixed(parameters, format, group):
        first.append(group)
        return grid(parameters, format, first[0][: len(group)])

    patch.setattr(sweep_module, "grid_of", mixed)


def forgotten_blocks(patch):
    """A block starts from the original weights, without the errors of earlier blocks."""
    sweep = sweep_module.sweep
    patch.setattr(
        sweep_module,
        "sweep",
        lambda _, weights, *others, **more: sweep(weights, weights, *others, **more),
    )


def shifted_factor(patch):
    """Each error is passed on with the coefficients of the next column."""
    sweep = sweep_module.sweep

    def shifted(start, weights, factor, grid, rounding=True):
        moved = np.triu(np.roll(factor, -1, axis=0), 1) + np.eye(len(factor), dtype=np.float32)
        return sweep(start, weights, moved, grid, rounding)

    patch.setattr(sweep_module, "sweep", shifted)


SLIPS = [local_factor, local_groups, forgotten_blocks, shifted_factor]


@pytest.fixture
def three_blocks(make_problem, any_format):
    """More than two blocks of strongly correlated inputs whose coupling changes along the row."""
    settings = SolveSettings(refinements=0, damping=0.01, refits=0, act_order=False)
    return make_problem(16, 260, any_format(3, 32, "variable"), settings)


@pytest.mark.parametrize("slip", SLIPS)
def test_mixed_up_columns_are_noticed(slip, three_blocks, assert_is_exact, monkeypatch):
    assert_is_exact(three_blocks, solve_gptq(three_blocks))
    slip(monkeypatch)
    with pytest.raises(AssertionError):
        assert_is_exact(three_blocks, solve_gptq(three_blocks))


def test_mixed_up_columns_cost_accuracy_yet_beat_rounding(three_blocks, direct, monkeypatch):
    # Why a comparison with rounding alone does not find this slip.
    correct = direct(three_blocks, solve_gptq(three_blocks)).error
    rounded = direct(three_blocks, solve_round(three_blocks)).error
    local_factor(monkeypatch)
    mixed = direct(three_blocks, solve_gptq(three_blocks)).error
    assert correct < mixed < rounded


def test_updates_within_the_group_count_when_its_scale_is_fitted(
    make_problem, any_format, assert_is_exact, monkeypatch
):
    # The reference code of the paper fits a group without the updates of its own block.
    problem = make_problem(16, 200, any_format(3, 32, "variable"), AS_PUBLISHED)
    sweep = sweep_module.sweep

    def stale(start, weights, factor, grid, rounding=True):
        if not rounding:
            return None, np.zeros_like(weights)
        return sweep(start, weights, factor, grid, rounding)

    monkeypatch.setattr(sweep_module, "sweep", stale)
    with pytest.raises(AssertionError):
        assert_is_exact(problem, solve_gptq(problem))
