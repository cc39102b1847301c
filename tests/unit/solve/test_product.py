"""The f32 product: its value, and bits that do not depend on processors or BLAS threads."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from crumb.kernels import threads as threads_module
from crumb.solve.product import ROWS, product

UNIT = 2.0**-24


def factors(rows, inner, columns):
    rng = np.random.default_rng([rows, inner, columns])
    left = rng.standard_normal((rows, inner)).astype(np.float32)
    return left, rng.standard_normal((inner, columns))


@pytest.mark.parametrize("rows", [0, 1, ROWS - 1, ROWS, ROWS + 1, 300])
@pytest.mark.parametrize(("inner", "columns"), [(0, 3), (1, 1), (129, 40), (1100, 7)])
def test_it_is_the_product(rows, inner, columns):
    left, right = factors(rows, inner, columns)
    found = product(left, right)
    exact = left.astype(np.float64) @ right
    # One rounding of each entry to f32, one of each product, and one of each of the sums.
    bound = (inner + 2) * UNIT * (np.abs(left).astype(np.float64) @ np.abs(right))
    assert found.shape == (rows, columns)
    assert found.dtype == np.float32
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("rows", [1, 70, 300])
@pytest.mark.parametrize("inner", [100, 1100])
def test_the_bits_do_not_depend_on_processors_or_blas_threads(rows, inner, monkeypatch):
    left, right = factors(rows, inner, 128)
    results = []
    for count in (1, 2, 5):
        monkeypatch.setattr(threads_module, "processors", lambda count=count: count)
        with threadpool_limits(min(count, 2)):
            results.append(product(left, right).tobytes())
    assert len(set(results)) == 1
