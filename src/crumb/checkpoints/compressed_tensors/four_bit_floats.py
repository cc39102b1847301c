"""4-bit floats (E2M1) of compressed-tensors files, one row of FLOAT_FORMATS for each format.

In: a directory's arrays: weight_packed u8 (out_features, in_features / 2), two codes a byte, the
low bits first. Of MXFP4 weight_scale is u8, an exponent for each row and 32 inputs; of NVFP4 e4m3,
for each row and 16 inputs, and weight_global_scale f32 divides them all. Out: an entry: of codes,
or of NVFP4 floats: weight = level * (scale / global scale), a division and a product in f32.
Refuses settings that are not the format's own, and arrays that do not follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crumb.architectures.configuration import refuse
from crumb.checkpoints.grouped_codes import needed
from crumb.checkpoints.mxfp4.blocks import FORMAT, GROUP, GROUP_BYTES, MxFloats, unpack_pairs
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import NVFP4 as SOURCE
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory, StoredFloats
from crumb.errors import CheckpointError
from crumb.formats.grid import Floats

MXFP4 = "mxfp4-pack-quantized"
NVFP4 = "nvfp4-pack-quantized"
NV_GROUP = 16

LEVELS = np.array(FORMAT.row.table, np.float32) / np.float32(2)
"""What a 4-bit float's code stands for: the catalog's row has twice that."""


@dataclass(frozen=True)
class FloatFormat:
    """What one format's settings must say, and how a module of it is read."""

    group_size: int
    strategy: str
    entry: Callable[[QuantizedDirectory, str], Entry]  # of a module; raises CheckpointError


def check_weights(weights: Mapping[str, Any], key: str, format: str) -> None:
    """Raises: CheckpointError for settings that are not the format's own."""
    row = FLOAT_FORMATS[format]
    own = {"num_bits": 4, "type": "float", "group_size": row.group_size, "strategy": row.strategy}
    for name, value in (own | {"symmetric": True}).items():
        setting = value if weights.get(name) is None else weights[name]
        if type(setting) is not type(value) or setting != value:
            raise refuse(f"{key}.{name}", f"{value} of {format}", setting)


def _mx_entry(directory: QuantizedDirectory, module: str) -> Entry:
    scales = needed(directory.arrays, f"{module}.weight_scale", (None, None), ("uint8",))
    bytes_of = scales.shape[0], GROUP_BYTES * scales.shape[1]
    packed = needed(directory.arrays, f"{module}.weight_packed", bytes_of, ("uint8",))
    return MxFloats(f"{directory.path}: {module}", packed, scales).entry()


@dataclass(frozen=True)
class NvFloats:
    """The arrays of one NVFP4 matrix."""

    where: str
    packed: StoredArray  # (rows, in_features / 2)
    scales: StoredArray  # (rows, groups)
    divisor: StoredArray  # (1,), the global scale

    def entry(self) -> StoredFloats:
        """What the matrix is read through."""
        shape = self.scales.shape[0], NV_GROUP * self.scales.shape[1]
        size = sum(each.size_bytes for each in (self.packed, self.scales, self.divisor))
        return StoredFloats(np.dtype(np.float32), shape, size, SOURCE, self.read_floats)

    def read_floats(self, rows: slice) -> Floats:
        """Some rows in f32. Raises: CheckpointError."""
        divisor = self.divisor.read()
        scales = self.scales.read(rows).astype(np.float32)
        with np.errstate(all="ignore"):
            scales /= divisor
            weights = LEVELS[unpack_pairs(self.packed.read(rows))]
            weights *= np.repeat(scales, NV_GROUP, axis=1)
        finite = np.isfinite(scales).all() and np.isfinite(weights).all()
        if not ((divisor > 0).all() and finite):
            raise CheckpointError(
                "a scale of 4-bit floats is no number, or too large",
                where=self.where,
                expected="finite scales, and a global scale above 0",
                found=f"a global scale of {divisor[0]:g}",
                do="The file is damaged: copy or download it again",
            )
        return weights


def _nv_entry(directory: QuantizedDirectory, module: str) -> Entry:
    arrays = directory.arrays
    scales = needed(arrays, f"{module}.weight_scale", (None, None), ("float8_e4m3fn",))
    bytes_of = scales.shape[0], NV_GROUP // 2 * scales.shape[1]
    packed = needed(arrays, f"{module}.weight_packed", bytes_of, ("uint8",))
    divisor = needed(arrays, f"{module}.weight_global_scale", (1,), ("float32",))
    return NvFloats(f"{directory.path}: {module}", packed, scales, divisor).entry()


FLOAT_FORMATS: dict[str, FloatFormat] = {
    MXFP4: FloatFormat(GROUP, "group", _mx_entry),
    NVFP4: FloatFormat(NV_GROUP, "tensor_group", _nv_entry),
}
