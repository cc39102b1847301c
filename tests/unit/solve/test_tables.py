"""Tables that are learned: better than what they begin with, whole, ascending, the same each time.

In: random matrices of several distributions. Out: tables, their errors beside those of the fixed
table and of whole numbers, matrices without weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crumb.formats.catalog import Format, ZeroKind, make_format
from crumb.formats.grid import decode_reference, encode_reference
from crumb.solve.problem import LayerProblem, Scales, SolveSettings
from crumb.solve.round import solve_round
from crumb.solve.scales import fit_scales
from crumb.solve.tables import learn_table
from crumb.solve.whole_matrix import solve_matrix

Floats = NDArray[np.float32]
BITS = pytest.mark.parametrize("bits", [2, 3, 4])


def drawn(kind: str, rows: int = 48, columns: int = 192) -> Floats:
    random = np.random.default_rng(7)
    draw = {"normal": random.standard_normal, "laplace": lambda shape: random.laplace(size=shape)}
    return (draw[kind]((rows, columns)) * 0.02).astype(np.float32)


def error(weights: Floats, importance: Floats, format: Format) -> float:
    parameters = fit_scales(weights, importance, format, Scales.SEARCH)
    decoded = decode_reference(encode_reference(weights, parameters, format), parameters, format)
    return float((np.square(weights - decoded, dtype=np.float64) * importance).sum())


def learned_table(format: Format) -> tuple[int, ...]:
    assert format.row.table is not None
    return format.row.table


@BITS
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_a_learned_table_is_better_than_where_it_began_and_than_whole_numbers(
    kind: str, bits: int
) -> None:
    weights, importance = drawn(kind), np.ones(192, np.float32)
    begun = make_format(bits, 64, ZeroKind.FIXED, "lut")
    learned = learn_table(weights, importance, begun)
    assert error(weights, importance, learned) <= error(weights, importance, begun)
    whole = error(weights, importance, make_format(bits, 64, ZeroKind.FIXED))
    assert error(weights, importance, learned) < 0.99 * whole


FARTHEST = {"lut": {2: 127, 3: 127, 4: 127}, "super": {2: 15, 3: 15, 4: 127}}


@BITS
@pytest.mark.parametrize("codes", FARTHEST)
def test_a_table_is_whole_ascends_and_reaches_the_end(bits: int, codes: str) -> None:
    format = make_format(bits, 32, ZeroKind.FIXED, codes)
    table = learned_table(learn_table(drawn("laplace"), np.ones(192, np.float32), format))
    assert len(table) == 1 << bits
    assert list(table) == sorted(set(table))
    assert max(map(abs, table)) == FARTHEST[codes][bits]
    again = learn_table(drawn("laplace"), np.ones(192, np.float32), format)
    assert learned_table(again) == table


def test_few_different_weights_leave_a_table_that_ascends() -> None:
    weights = np.where(drawn("normal") > 0, np.float32(0.25), np.float32(-0.25))
    format = make_format(4, 64, ZeroKind.FIXED, "lut")
    table = learned_table(learn_table(weights, np.ones(192, np.float32), format))
    assert list(table) == sorted(set(table))
    assert error(weights, np.ones(192, np.float32), format.with_table(table)) < 1e-4


def test_a_matrix_of_zeros_keeps_the_table_it_began_with() -> None:
    format = make_format(3, 64, ZeroKind.FIXED, "lut")
    assert learn_table(np.zeros((4, 64), np.float32), np.ones(64, np.float32), format) == format


def test_columns_that_count_more_are_hit_closer() -> None:
    weights = drawn("normal")
    importance = np.where(np.arange(192) < 96, np.float32(1.0), np.float32(1e-4))
    weights[:, 96:] = np.sign(weights[:, 96:]) * np.float32(0.03)
    format = make_format(2, 64, ZeroKind.FIXED, "lut")
    aware = learn_table(weights, importance, format)
    blind = learn_table(weights, np.ones_like(importance), format)
    assert error(weights, importance, aware) <= error(weights, importance, blind)


def test_all_slices_of_a_matrix_have_the_table_of_the_first() -> None:
    format = make_format(3, 32, ZeroKind.FIXED, "lut")
    whole = drawn("laplace", rows=64)
    nothing = np.empty((0, 192), np.float32)
    problem = LayerProblem("w", nothing, None, 0, format, SolveSettings(scales=Scales.SEARCH))
    slices = [(0, whole[:32]), (32, whole[32:])]
    packed, _ = solve_matrix(slices, problem, solve_round)
    expected = learn_table(whole[:32], np.ones(192, np.float32), format)
    assert packed.format == expected
    assert packed.out_features == 64


def test_a_table_that_is_fixed_takes_no_other() -> None:
    fixed: Any = make_format(4, 32, ZeroKind.FIXED, "nf4")
    with pytest.raises(AssertionError, match="nf4 has one table"):
        fixed.with_table((0,) * 16)
