"""Decode a packed tensor to f32 natively, and back into a packed one.

In: a PackedTensor, or codes and parameters. Out: weights (out_features, in_features), or the
tensor.
Reference: formats.grid.decode_reference over formats.bit_stream.unpack_reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crumb import _native
from crumb.formats.bit_stream import unpack_reference
from crumb.formats.catalog import Format
from crumb.formats.grid import GroupParameters, decode_reference
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.bit_stream import pack
from crumb.kernels.dispatch import ZERO_CODE
from crumb.kernels.threads import over_rows

Floats = NDArray[np.float32]


def decode(tensor: PackedTensor) -> Floats:
    """The tensor's weights in f32. Shapes: -> (out_features, in_features)."""
    weights = np.empty((tensor.out_features, tensor.in_features), np.float32)
    codes = np.ascontiguousarray(tensor.codes)
    scale = np.ascontiguousarray(tensor.parameters.scale, np.float32)
    offset = np.ascontiguousarray(tensor.parameters.offset(tensor.format))
    width = tensor.format.group_width(tensor.in_features)
    zero = ZERO_CODE[tensor.format.zero]

    def work(rows: slice) -> None:
        _native.decode(
            codes[rows],
            scale[rows],
            offset[rows],
            weights[rows],
            width,
            tensor.format.bits,
            zero,
        )

    over_rows(tensor.out_features, work)
    return weights


def decode_packed_reference(tensor: PackedTensor) -> Floats:
    """What decode computes, in plain NumPy."""
    codes = unpack_reference(tensor.codes, tensor.format.bits, tensor.in_features)
    return decode_reference(codes, tensor.parameters, tensor.format)


def pack_tensor(
    codes: NDArray[np.uint8], parameters: GroupParameters, format: Format
) -> PackedTensor:
    """A PackedTensor from a solver's codes. Shapes: codes (out_features, in_features)."""
    out_features, in_features = codes.shape
    return PackedTensor(format, out_features, in_features, pack(codes, format.bits), parameters)
