"""Factor a damped H as R R^T with R upper triangular, in place and block by block.

In: a symmetric f64 matrix. Out: R in its upper triangle; the lower triangle keeps the original.
GPTQ's paper uses U with H^-1 = U^T U; U = R^-1, so U[j, k] / U[j, j] over the columns still to
come equals what R gives over the columns already done (solve/gptq.py). Refuses matrices that are
not positive definite; the caller raises the damping and tries again on the restored matrix.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from crumb.kernels.threads import parallel_map, single_blas

BLOCK = 256
STRIP = 512

Matrix = NDArray[np.float64]


class NotPositiveDefinite(Exception):
    """The matrix has a direction of no or negative weight; more damping may help."""


def factor_in_place(matrix: Matrix) -> None:
    """Replace the upper triangle by R with matrix = R R^T. Raises: NotPositiveDefinite.

    Works from the last block of columns to the first: R_kk from the flipped Cholesky factor,
    R_ik = A_ik R_kk^-T, then A_ij -= R_ik R_jk^T for the columns before.
    """
    with single_blas():
        for begin in reversed(range(0, len(matrix), BLOCK)):
            panel = _factor_block(matrix, begin, min(begin + BLOCK, len(matrix)))
            parallel_map(partial(_update_strip, matrix, panel), range(0, begin, STRIP))


def _factor_block(matrix: Matrix, begin: int, end: int) -> Matrix:
    """Factor the columns begin .. end; returns R_ik for the rows before them."""
    corner = matrix[begin:end, begin:end]
    upper = np.triu(corner)
    symmetric = upper + np.triu(upper, 1).T
    try:
        lower = np.linalg.cholesky(symmetric[::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise NotPositiveDefinite(f"columns {begin} to {end}") from error
    root = lower[::-1, ::-1]
    if not np.isfinite(root).all():
        raise NotPositiveDefinite(f"columns {begin} to {end}")
    panel: Matrix = matrix[:begin, begin:end]
    if begin:
        panel = panel @ np.linalg.inv(root).T
        matrix[:begin, begin:end] = panel
    corner[:] = np.triu(root) + np.tril(corner, -1)
    return panel


def _update_strip(matrix: Matrix, panel: Matrix, first: int) -> None:
    """Take the block's part off the columns first .. first + STRIP before it."""
    last = min(first + STRIP, len(panel))
    product = panel[:last] @ panel[first:last].T
    product[first:] = np.triu(product[first:])  # the lower triangle stays as it was
    matrix[:last, first:last] -= product


def restore(matrix: Matrix, diagonal: Matrix) -> None:
    """Undo factor_in_place, complete or not: the lower triangle and the saved diagonal."""
    size = len(matrix)
    for begin in range(0, size, STRIP):
        end = min(begin + STRIP, size)
        matrix[begin:end, end:] = matrix[end:, begin:end].T
        corner = matrix[begin:end, begin:end]
        corner[:] = np.tril(corner, -1) + np.tril(corner, -1).T
    matrix[np.diag_indices(size)] = diagonal
