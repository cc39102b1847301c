"""Products of f32 matrices by the native float kernels, for what goes back through a model.

In: NumPy arrays, as they lie or transposed views of such. Out: f32. All processors share the
columns of a product, or the matrices of a stack; the bits of a number depend on its row and column
alone. Arrays of another dtype or library go to their own library, which is also the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from crumb import _native
from crumb.kernels.dispatch import selected_set
from crumb.kernels.threads import over_rows, parallel_map

Array = Any


def multiply(left: Array, right: Array) -> Array:
    """left right. Shapes: (..., rows, inputs), (..., inputs, columns) -> (..., rows, columns)."""
    if not (_is_native(left) and _is_native(right)):
        return multiply_reference(left, right)
    columns = right.shape[-1]
    out = np.empty((*left.shape[:-1], _native.buffer_stride(columns)), np.float32)
    assert out.shape[:-2] == right.shape[:-2], "stacks of one shape"
    if left.ndim == 2:
        _fill(left, right, out)
    else:
        parallel_map(lambda at: _fill(left[at], right[at], out[at]), np.ndindex(left.shape[:-2]))
    return out[..., :columns]


def multiply_reference(left: Array, right: Array) -> Array:
    """The same by the arrays' own library."""
    return array_namespace(left, right).matmul(left, right)


def _is_native(array: Array) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.size > 0


def _fill(left: Array, right: Array, out: Array) -> None:
    """out = left right, of two matrices; the kernel multiplies rows with rows, or with columns."""
    isa, turned = selected_set(), right.flags.c_contiguous
    laid, rows = np.ascontiguousarray(right if turned else right.T), np.ascontiguousarray(left)

    def work(part: slice) -> None:
        _native.multiply(isa, rows, laid, out, turned, part.start, part.stop)

    over_rows(right.shape[1], work)
