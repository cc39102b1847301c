"""Products outside the engine: the same numbers however matrices lie, whatever is beside a row.

In: random f32 matrices, as they lie and transposed, of sizes around the kernels' blocks. Out: sums
within their roundings, equal bits for equal rows and columns, refusals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crumb import _native
from crumb.kernels.dispatch import supported_sets
from crumb.kernels.products import multiply, multiply_reference

ROUNDING = 2.0**-23
SIZES = [(1, 1, 1), (3, 16, 5), (13, 385, 33), (25, 100, 150), (40, 7, 16)]
"""Rows, inputs and columns."""


def drawn(rows: int, columns: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("isa", supported_sets())
@pytest.mark.parametrize(("rows", "inputs", "columns"), SIZES)
def test_all_ways_of_lying_give_one_product(
    rows: int, inputs: int, columns: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUMB_ISA", isa)
    left, right = drawn(rows, inputs, 1), drawn(inputs, columns, 2)
    product = multiply(left, right)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    bound = (inputs + 1) * ROUNDING * (np.abs(left) @ np.abs(right)) + 1e-30
    assert product.dtype == np.float32
    assert (np.abs(product - exact) <= bound).all()
    turned_left, turned_right = np.ascontiguousarray(left.T).T, np.ascontiguousarray(right.T).T
    for a, b in ((left, turned_right), (turned_left, right), (turned_left, turned_right)):
        np.testing.assert_array_equal(multiply(a, b), product)
    np.testing.assert_array_equal(multiply(left[:1], right), product[:1])
    np.testing.assert_array_equal(multiply(left, right[:, -1:]), product[:, -1:])


def test_a_stack_is_its_matrices() -> None:
    left = drawn(2 * 3 * 20, 24, 1).reshape(2, 3, 20, 24)
    right = np.swapaxes(drawn(2 * 3 * 24, 10, 2).reshape(2, 24, 3, 10), 1, 2)
    product = multiply(left, right)
    for at in np.ndindex(2, 3):
        np.testing.assert_array_equal(product[at], multiply(left[at], right[at]))


def test_other_dtypes_go_to_their_own_library() -> None:
    left, right = drawn(3, 4, 1).astype(np.float64), drawn(4, 5, 2).astype(np.float64)
    product = multiply(left, right)
    assert product.dtype == np.float64
    np.testing.assert_array_equal(product, multiply_reference(left, right))


USUAL: dict[str, Any] = {
    "isa": "baseline",
    "left": np.zeros((3, 8), np.float32),
    "right": np.zeros((20, 8), np.float32),
    "out": np.zeros((3, 32), np.float32),
    "turned": False,
    "begin": 0,
    "end": 20,
}


@pytest.mark.parametrize(
    "changed",
    [
        {"isa": "sse9"},
        {"left": np.zeros((3, 7), np.float32)},
        {"left": np.zeros((2, 8), np.float32)},
        {"left": np.zeros((3, 0), np.float32), "right": np.zeros((20, 0), np.float32)},
        {"turned": True},
        {"out": np.zeros((3, 20), np.float32)},
        {"begin": 8},
        {"begin": -16},
        {"begin": 16, "end": 0},
        {"end": 21},
        {"end": 1 << 62},
    ],
)
def test_a_product_that_cannot_be_is_a_value_error(changed: dict[str, Any]) -> None:
    _native.multiply(**USUAL)
    with pytest.raises(ValueError, match=r"shape|size|range|supported"):
        _native.multiply(**USUAL | changed)


def test_another_dtype_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        _native.multiply(**USUAL | {"left": np.zeros((3, 8))})
