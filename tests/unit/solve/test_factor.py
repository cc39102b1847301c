"""H = R R^T in place: the product, the untouched lower triangle, and the way back."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from crumb.solve import factor as module
from crumb.solve.factor import NotPositiveDefinite, factor_in_place, restore


def positive_definite(size, seed=0):
    rng = np.random.default_rng([seed, size])
    inputs = rng.standard_normal((2 * size + 2, size))
    matrix = inputs.T @ inputs / len(inputs)
    return np.triu(matrix) + np.triu(matrix, 1).T  # symmetric to the last bit


def assert_factored(matrix, original):
    root = np.triu(matrix)
    assert (root.diagonal() > 0).all()
    # Each of n steps of the blocked factorization adds one rounding of the entries it touches,
    # and multiplying by an inverted corner amplifies it by the corner's condition.
    size = len(original)
    bound = (size + 1) * 2.0**-53 * np.linalg.cond(root) * np.linalg.norm(original, 2)
    assert np.abs(root @ root.T - original).max() <= bound
    np.testing.assert_array_equal(np.tril(matrix, -1), np.tril(original, -1))


@pytest.mark.parametrize("size", [1, 2, 3, 17, 255, 256, 257, 511, 512, 513, 600])
def test_the_upper_triangle_becomes_a_root_and_the_lower_stays(size):
    original = positive_definite(size)
    matrix = original.copy()
    factor_in_place(matrix)
    assert_factored(matrix, original)


@pytest.mark.parametrize("size", [9, 40, 41, 100])
@pytest.mark.parametrize("strip", [8, 20, 1000])
def test_any_strip_and_any_remainder_give_a_root(size, strip, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setattr(module, "STRIP", strip)
    original = positive_definite(size)
    matrix = original.copy()
    factor_in_place(matrix)
    assert_factored(matrix, original)
    restore(matrix, original.diagonal().copy())
    np.testing.assert_array_equal(matrix, original)


@pytest.mark.parametrize("size", [1, 2, 255, 257, 600])
def test_restoring_gives_every_bit_back(size):
    original = positive_definite(size)
    matrix = original.copy()
    factor_in_place(matrix)
    restore(matrix, original.diagonal().copy())
    np.testing.assert_array_equal(matrix, original)


@pytest.mark.parametrize(
    ("bad", "block"), [(0, "0 to 256"), (300, "256 to 512"), (599, "512 to 600")]
)
def test_a_failure_at_any_block_is_named_and_can_be_undone(bad, block):
    original = positive_definite(600)
    original[bad, bad] = -1.0
    matrix = original.copy()
    with pytest.raises(NotPositiveDefinite, match=f"columns {block}"):
        factor_in_place(matrix)
    # Blocks behind the bad one are factored already.
    assert (matrix != original).any() == (bad < 512)
    restore(matrix, original.diagonal().copy())
    np.testing.assert_array_equal(matrix, original)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 5, 299])
def test_a_matrix_that_is_not_finite_is_not_positive_definite(value, place):
    matrix = positive_definite(300)
    matrix[place, place] = value
    with pytest.raises(NotPositiveDefinite):
        factor_in_place(matrix)


def test_a_semidefinite_matrix_is_refused_or_has_a_finite_root():
    # Rank 1: rounding decides; either way no NaN reaches a solver.
    matrix = np.ones((300, 300))
    try:
        factor_in_place(matrix)
    except NotPositiveDefinite:
        restore(matrix, np.ones(300))
    assert np.isfinite(matrix).all()


def test_the_threads_of_blas_do_not_change_a_bit():
    roots = []
    for threads in (1, 2):
        matrix = positive_definite(600)
        with threadpool_limits(threads):
            factor_in_place(matrix)
        roots.append(matrix)
    np.testing.assert_array_equal(*roots)
