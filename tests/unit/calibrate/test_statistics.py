"""H = X^T X / tokens: the value, its symmetry, its independence of threads, and what is refused."""

import numpy as np
import pytest

from crumb.calibrate import statistics
from crumb.calibrate.statistics import BLOCK, WIDE, accumulate
from crumb.errors import SolveError
from crumb.kernels import threads as parallel

UNIT = 2.0**-24


def batches(in_features, lengths, seed=0):
    """Batches of several sequences each, as the walk hands them over."""
    rng = np.random.default_rng([seed, in_features])
    mean = rng.standard_normal(in_features)
    return [
        (rng.standard_normal((2, length, in_features)) + mean).astype(np.float32)
        for length in lengths
    ]


@pytest.mark.parametrize("in_features", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 1100, WIDE + 1])
def test_h_is_the_second_moment(in_features):
    parts = batches(in_features, (9, 1, 16))
    found = accumulate(parts, "layer")
    inputs = np.concatenate([part.reshape(-1, in_features) for part in parts]).astype(np.float64)
    assert found.tokens == 2 * (9 + 1 + 16) == len(inputs)
    assert found.hessian.dtype == np.float64
    exact = inputs.T @ inputs / len(inputs)
    # f32 products over the rows of one batch, at most 32 here: (n + 1) roundings of the sum of
    # magnitudes. Totals are f64 and add nothing that counts beside it.
    bound = 33 * UNIT * (np.abs(inputs).T @ np.abs(inputs)) / len(inputs)
    assert (np.abs(found.hessian - exact) <= bound).all()


@pytest.mark.parametrize("in_features", [1, 7, 513, 1100])
def test_h_is_symmetric_to_the_last_bit(in_features):
    hessian = accumulate(batches(in_features, (9, 5)), "layer").hessian
    np.testing.assert_array_equal(hessian, hessian.T)


def test_totals_are_kept_in_f64():
    # 2^24 + 1 is not an f32: a total in f32 would lose the second batch.
    large = np.full((1, 1), 4096, np.float32)
    small = np.ones((1, 1), np.float32)
    assert accumulate([large, small], "layer").hessian[0, 0] == (2**24 + 1) / 2


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_thread_count_does_not_change_the_bits(threads, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 16)
    parts = batches(75, (9, 5))
    monkeypatch.setattr(parallel, "processors", lambda: 1)
    alone = accumulate(parts, "layer").hessian
    monkeypatch.setattr(parallel, "processors", lambda: threads)
    np.testing.assert_array_equal(accumulate(parts, "layer").hessian, alone)


@pytest.mark.parametrize("place", [0, 600, 1099])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_inputs_that_are_not_finite_are_refused_by_the_layers_name(place, value):
    # 1e30 is finite, its square in f32 is not.
    parts = batches(1100, (3, 2))
    parts[1][1, 0, place] = value
    with pytest.raises(SolveError, match=r"^blocks\.3\.mlp\.down: .*found 1 of 1100 features"):
        accumulate(parts, "blocks.3.mlp.down")


def test_an_unused_feature_has_a_zero_row_and_column():
    parts = batches(40, (9,))
    parts[0][..., 5] = 0
    hessian = accumulate(parts, "layer").hessian
    assert not hessian[5].any()
    assert not hessian[:, 5].any()
    assert (np.delete(hessian.diagonal(), 5) > 0).all()


def test_inputs_are_not_changed():
    parts = batches(40, (9, 2))
    before = [part.tobytes() for part in parts]
    accumulate(parts, "layer")
    assert [part.tobytes() for part in parts] == before
