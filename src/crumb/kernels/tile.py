"""Pack and unpack the tile layout natively.

In: codes and group parameters, or tiles, as formats/layouts/tile.py defines them. Out: the other.
Reference: formats.layouts.tile.pack_reference and unpack_reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.formats.bit_stream import check_codes
from crumb.formats.catalog import Format
from crumb.formats.grid import GroupParameters
from crumb.formats.layouts.tile import HEADERS, tiles_of_rows
from crumb.formats.packed_tensor import PackedTensor, stored_shape
from crumb.kernels.dispatch import ZERO_CODE
from crumb.kernels.threads import over_rows

Bytes = NDArray[np.uint8]


def pack(codes: Bytes, parameters: GroupParameters, format: Format) -> Bytes:
    """Shapes: codes (out_features, in_features) -> (tiles, tile_bytes). Raises: UsageError."""
    check_codes(codes, format.bits)
    out_features, in_features = codes.shape
    tiles = np.empty(stored_shape(format, out_features, in_features), np.uint8)
    codes = np.ascontiguousarray(codes)
    fields = [
        np.ascontiguousarray(getattr(parameters, name), dtype)
        for name, dtype in HEADERS[format.zero].items()
    ]
    scale, offset = _as_bytes(fields, out_features)

    def work(rows: slice) -> None:
        _native.pack_tiles(
            codes[rows],
            scale[rows],
            offset[rows],
            tiles[tiles_of_rows(rows.start, rows.stop)],
            format.group_width(in_features),
            format.bits,
            ZERO_CODE[format.zero],
        )

    over_rows(out_features, work)
    return tiles


def unpack(
    tiles: Bytes, format: Format, out_features: int, in_features: int
) -> tuple[Bytes, GroupParameters]:
    """Undo pack. Shapes: (tiles, tile_bytes) -> codes (out_features, in_features)."""
    tiles = np.ascontiguousarray(tiles)
    codes = np.empty((out_features, in_features), np.uint8)
    groups = (out_features, format.groups(in_features))
    fields = {name: np.empty(groups, dtype) for name, dtype in HEADERS[format.zero].items()}
    scale, offset = _as_bytes(list(fields.values()), out_features)

    def work(rows: slice) -> None:
        _native.unpack_tiles(
            tiles[tiles_of_rows(rows.start, rows.stop)],
            codes[rows],
            scale[rows],
            offset[rows],
            format.group_width(in_features),
            format.bits,
            ZERO_CODE[format.zero],
        )

    over_rows(out_features, work)
    return codes, GroupParameters(**fields)


def _as_bytes(fields: list[NDArray[Any]], out_features: int) -> tuple[Bytes, Bytes]:
    """Views of a header's fields: the scales, then what follows them, nothing if nothing does."""
    nothing = np.empty((out_features, 0), np.uint8)
    scale, offset = [*fields, nothing][:2]
    return scale.view(np.uint8), offset.view(np.uint8)


def pack_tensor(codes: Bytes, parameters: GroupParameters, format: Format) -> PackedTensor:
    """A PackedTensor from a solver's codes. Shapes: codes (out_features, in_features)."""
    out_features, in_features = codes.shape
    return PackedTensor(format, out_features, in_features, pack(codes, parameters, format))


def unpack_tensor(tensor: PackedTensor) -> tuple[Bytes, GroupParameters]:
    """A tensor's codes (out_features, in_features) and parameters."""
    return unpack(tensor.tiles, tensor.format, tensor.out_features, tensor.in_features)
