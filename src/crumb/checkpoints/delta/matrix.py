"""Some rows of a quantized matrix as one piece of a delta, and back.

In: the base's weights and codes with their parameters, or a piece. Out: the other. Parameters come
first in a piece: the grid that the codes are told against is the stored one.
Refuses pieces that do not lead to a matrix of this shape and format.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb.checkpoints.delta.codes import put_codes, round_plainly, take_codes
from crumb.checkpoints.delta.parameters import put_parameters, take_parameters
from crumb.checkpoints.delta.piece import PieceReader, PieceWriter
from crumb.checkpoints.tensor_map import Matrix
from crumb.formats.catalog import Format

Floats = NDArray[np.float32]


def encode_part(weights: Floats, matrix: Matrix, format: Format) -> tuple[bytes, float]:
    """A piece, and the share of codes that plain rounding would not have chosen."""
    codes, parameters = matrix
    piece = PieceWriter()
    put_parameters(piece, parameters, weights, format)
    changed = put_codes(piece, codes, round_plainly(weights, parameters, format), format)
    return piece.finished(), changed


def decode_part(piece: PieceReader, weights: Floats, format: Format, where: str) -> Matrix:
    """Undo encode_part. Raises: CheckpointError."""
    parameters = take_parameters(piece, weights, format)
    codes = take_codes(piece, round_plainly(weights, parameters, format), format, where)
    piece.end()
    return codes, parameters
