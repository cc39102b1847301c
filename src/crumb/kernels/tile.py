"""Pack and unpack the tile layout natively.

In: codes and group parameters, or tiles, as formats/layouts/tile.py defines them. Out: the other.
Reference: formats.layouts.tile.pack_reference and unpack_reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.formats.bit_stream import check_codes
from crumb.formats.catalog import Format
from crumb.formats.grid import GroupParameters
from crumb.formats.layouts.tile import (
    header_bytes,
    headers,
    parameters_of,
    tiles_of_rows,
)
from crumb.formats.packed_tensor import PackedTensor, stored_shape
from crumb.kernels.threads import over_rows

Bytes = NDArray[np.uint8]


def pack(codes: Bytes, parameters: GroupParameters, format: Format) -> Bytes:
    """Shapes: codes (out_features, in_features) -> (tiles, tile_bytes). Raises: UsageError."""
    check_codes(codes, format.bits)
    out_features, in_features = codes.shape
    tiles = np.empty(stored_shape(format, out_features, in_features), np.uint8)
    codes = np.ascontiguousarray(codes)
    size = format.blocks(in_features) * header_bytes(format)
    before = headers(parameters, format).reshape(len(tiles), size)
    block = _block(format, in_features)

    def work(rows: slice) -> None:
        these = tiles_of_rows(rows.start, rows.stop)
        _native.pack_tiles(codes[rows], before[these], tiles[these], *block, format.bits)

    over_rows(out_features, work)
    return tiles


def _block(format: Format, in_features: int) -> tuple[int, int]:
    """Inputs of a block, and bytes of the last one's header."""
    width = format.block_width(in_features)
    last = in_features - (format.blocks(in_features) - 1) * width
    return width, header_bytes(format, last)


def unpack(
    tiles: Bytes, format: Format, out_features: int, in_features: int
) -> tuple[Bytes, GroupParameters]:
    """Undo pack. Shapes: (tiles, tile_bytes) -> codes (out_features, in_features)."""
    tiles = np.ascontiguousarray(tiles)
    codes = np.empty((out_features, in_features), np.uint8)
    blocks, size = format.blocks(in_features), header_bytes(format)
    before = np.empty((len(tiles), blocks * size), np.uint8)
    block = _block(format, in_features)

    def work(rows: slice) -> None:
        these = tiles_of_rows(rows.start, rows.stop)
        _native.unpack_tiles(tiles[these], codes[rows], before[these], *block, format.bits)

    over_rows(out_features, work)
    return codes, parameters_of(before.reshape(len(tiles), blocks, size), format, out_features)


def pack_tensor(codes: Bytes, parameters: GroupParameters, format: Format) -> PackedTensor:
    """A PackedTensor from a solver's codes. Shapes: codes (out_features, in_features)."""
    out_features, in_features = codes.shape
    return PackedTensor(format, out_features, in_features, pack(codes, parameters, format))


def unpack_tensor(tensor: PackedTensor) -> tuple[Bytes, GroupParameters]:
    """A tensor's codes (out_features, in_features) and parameters; float columns stay apart."""
    return unpack(tensor.tiles, tensor.format, tensor.out_features, tensor.in_features)
