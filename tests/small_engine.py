"""A small native engine for operations on groups: buffers, random matrices, int8 activations.

In: an instruction set, threads, the features of some tokens. Out: its buffers once it has run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from engine_calls import aligned
from numpy.typing import NDArray
from random_matrices import random_matrix

from crumb.formats.catalog import Format
from crumb.formats.grid import GroupParameters
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.dispatch import sub_code, zero_code
from crumb.kernels.engine import (
    BLOCK_INPUTS,
    NativeEngine,
    activation_rows,
    activation_stride,
    matmul_scratch_bytes,
    table_bytes,
)
from crumb.kernels.tile import pack_tensor
from crumb.run.memory_plan import block_inputs

Floats = NDArray[np.float32]


def moderate(parameters: GroupParameters, bits: int) -> GroupParameters:
    """Scales that keep what is multiplied twice finite, and zero points that are codes."""
    small: dict[str, NDArray[Any]] = {"scale": (parameters.scale / 64).astype(np.float16)}
    if parameters.minimum is not None:
        small["minimum"] = (parameters.minimum / 64).astype(np.float16)
    if parameters.zero_point is not None:
        small["zero_point"] = parameters.zero_point & ((1 << bits) - 1)
    return GroupParameters(**(vars(parameters) | small))


class SmallEngine:
    """An engine whose operations read one input of some tokens."""

    def __init__(self, isa: str, threads: int, x: Floats) -> None:
        self.rows = len(x)
        scratch = -(-matmul_scratch_bytes(512) // 64) * 64
        self.native = NativeEngine(isa, threads, aligned(threads, scratch))
        self.arrays: list[Floats] = []
        self.x = self.buffer(x.shape[1])
        self.arrays[self.x][:, : x.shape[1]] = x

    def buffer(self, width: int, rows: int | None = None) -> int:
        shape = (rows or self.rows, -(-width // 16) * 16)
        self.arrays.append(aligned(shape[0], 4 * shape[1]).view(np.float32))
        return int(self.native.add_buffer(self.arrays[-1], width))

    def matrix(self, format: Format, rows: int, columns: int, seed: int) -> int:
        codes, parameters = random_matrix(format, rows, columns, seed)
        return self.packed(pack_tensor(codes, moderate(parameters, format.bits), format))

    def packed(self, tensor: PackedTensor) -> int:
        format, shape = tensor.format, (tensor.out_features, tensor.in_features)
        width = format.group_width(tensor.in_features)
        kind = (format.bits, zero_code(format), sub_code(format), table_bytes(format.row))
        index = int(self.native.add_tiles(tensor.tiles, *shape, width, *kind))
        if tensor.columns is not None:
            tiles = tensor.columns.tiles.view(np.uint8)
            self.native.add_columns(index, tensor.columns.places, tiles)
        return index

    def activations(self, format: Format, columns: int, rows: int) -> int:
        block = block_inputs(format, columns)
        codes = aligned(activation_rows(rows), activation_stride(columns)).view(np.int8)
        scale = np.zeros((rows, -(-columns // BLOCK_INPUTS)), np.float32)
        sums = np.zeros((rows, -(-columns // block)), np.int32)
        return int(self.native.add_activations(codes, scale, sums, columns, block))

    def run(self) -> None:
        words = self.native.add_floats(np.zeros((4, 64), np.uint8), 16, 0)
        scrap = self.buffer(16)
        self.native.add("embed", of_positions=False, first_row=0, out=scrap, matrix=words)
        part = ([0] * self.rows, 0, [0] * self.rows, 0)
        self.native.step([part], self.native.operation_count())
