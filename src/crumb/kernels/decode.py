"""Decode a packed tensor to f32 natively.

In: a PackedTensor, in memory or mapped. Out: weights (out_features, in_features).
Reference: formats.grid.decode_reference over formats.layouts.tile.unpack_reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.formats.grid import decode_reference
from crumb.formats.layouts.tile import tiles_of_rows, unpack_reference
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.dispatch import sub_code, zero_code
from crumb.kernels.threads import over_rows

Floats = NDArray[np.float32]


def decode(tensor: PackedTensor) -> Floats:
    """The tensor's weights in f32. Shapes: -> (out_features, in_features)."""
    weights = np.empty((tensor.out_features, tensor.in_features), np.float32)
    tiles = np.ascontiguousarray(tensor.tiles)
    format = tensor.format
    table = np.array(format.row.table or (), np.int8)

    def work(rows: slice) -> None:
        _native.decode_tiles(
            tiles[tiles_of_rows(rows.start, rows.stop)],
            table,
            weights[rows],
            format.group_width(tensor.in_features),
            format.bits,
            zero_code(format),
            sub_code(format),
        )

    over_rows(tensor.out_features, work)
    if tensor.columns is not None:
        tensor.columns.add_to(weights)
    return weights


def decode_packed_reference(tensor: PackedTensor) -> Floats:
    """What decode computes, in plain NumPy."""
    format = tensor.format
    codes, parameters = unpack_reference(
        tensor.tiles, format, tensor.out_features, tensor.in_features
    )
    weights = decode_reference(codes, parameters, format)
    if tensor.columns is not None:
        tensor.columns.add_to(weights)
    return weights
